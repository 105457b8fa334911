// Show what a topic tells, and connect again, after growing pauses, whenever the connection ends or nothing is heard.
function follow(path, show, lost) {
  let pause = 500;
  const connect = () => {
    const socket = new WebSocket(location.origin.replace('http', 'ws') + path);
    let silence = setTimeout(() => socket.close(), 75000);
    socket.onmessage = (message) => {
      clearTimeout(silence);
      silence = setTimeout(() => socket.close(), 75000);
      pause = 500;
      show(JSON.parse(message.data));
    };
    socket.onclose = () => {
      clearTimeout(silence);
      lost();
      setTimeout(connect, pause * (0.5 + Math.random()));
      pause = Math.min(2 * pause, 30000);
    };
  };
  connect();
}

const set = (id, value) => { document.getElementById(id).textContent = value; };
follow('/topic/dashboard/orders', (now) => { set('orders', now.orders); set('state', 'live'); }, () => set('state', 'offline'));
