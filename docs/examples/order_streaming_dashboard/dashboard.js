"use strict";

const NUMBERS = ["completed", "cancelled", "paid", "turnover", "income"];
let version = -1;
let wait = 500;
let asking = false;
let again = false;
let later;

function say(text, live) {
  const state = document.getElementById("state");
  state.textContent = text;
  state.dataset.live = live ? "yes" : "no";
}

function show(metrics) {
  // Messages may overtake each other.
  if (metrics.version < version) return;
  version = metrics.version;
  for (const name of NUMBERS) document.getElementById(name).textContent = metrics[name];
}

async function showRanking() {
  // One request at a time, and one more for what came meanwhile.
  again = true;
  if (asking) return;
  asking = true;
  while (again) {
    again = false;
    try {
      const answer = await fetch("../ranking");
      if (!answer.ok) continue;
      const rows = (await answer.json()).ranking.slice(0, 10).map(({ productId, quantity }) => {
        const row = document.createElement("tr");
        for (const value of [productId, quantity]) row.insertCell().textContent = value;
        return row;
      });
      document.getElementById("ranking").replaceChildren(...rows);
    } catch {
      // The next message asks again.
    }
  }
  asking = false;
}

function connect() {
  const url = new URL("../topic/dashboard/orders", location.href);
  url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  const socket = new WebSocket(url);
  socket.onopen = () => {
    wait = 500;
    version = -1; // what comes first is how it stands
    say("live", true);
  };
  socket.onmessage = (message) => {
    show(JSON.parse(message.data));
    showRanking();
    // The ranking is another group's work, which may come a moment later.
    clearTimeout(later);
    later = setTimeout(showRanking, 1500);
  };
  socket.onclose = () => {
    say("connection lost, trying again", false);
    setTimeout(connect, wait + Math.random() * wait);
    wait = Math.min(wait * 2, 15000);
  };
}

connect();
