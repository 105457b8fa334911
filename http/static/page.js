'use strict';

// The page of a running Penstock: listens to /api/v1/live and draws what it hears.
// Whatever comes from outside is put in as text, never as markup.

const SILENCE_MS = 4000; // the server says something every 2 s
const REOPEN_MS = 2000;
const STALE_S = 30; // the health monitor looks at the streams every 10 s

const STATES = {
  running: ['●', 'good'],
  starting: ['◔', 'busy'],
  waiting: ['○', 'still'],
  stopping: ['◑', 'busy'],
  held: ['▮▮', 'warn'],
  backoff: ['↻', 'bad'],
  stuck: ['✖', 'bad'],
  ended: ['■', 'still'],
};

const LEASE = 'lease '; // gates of this name are open where this process has the partition
const GATE_NAMES = { redis: 'Redis', postgres: 'PostgreSQL' };

let state = null; // what was heard last
let heardAt = performance.now(); // when
let clockSkew = 0; // server time minus ours, in ms
let source = null;
const drawn = new Map(); // section → what it was drawn from

const $ = (id) => document.getElementById(id);

// Building ------------------------------------------------------------------------------------------------------------

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === 'data') Object.assign(made.dataset, value);
    else if (name === 'class') made.className = value;
    else made.setAttribute(name, value === true ? '' : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined).map((child) => (child instanceof Node ? child : String(child))));
  return made;
}

/** Draw a section anew, but only when it shows something else: a selection or the focus in it should stay. */
function redraw(name, from, draw) {
  const key = JSON.stringify(from);
  if (drawn.get(name) === key) return;
  drawn.set(name, key);
  draw();
}

/** An element whose text is a duration that runs on (or down, for a time to come); `form` makes a phrase of it. */
function running(iso, form) {
  return element('span', { data: { since: iso, form } }, phrase(iso, form));
}

function phrase(iso, form) {
  return form.replace('{}', duration(Math.abs(now() - Date.parse(iso)) / 1000));
}

function sign(text) {
  return element('span', { class: 'sign', 'aria-hidden': 'true' }, text);
}

// Words ---------------------------------------------------------------------------------------------------------------

function now() {
  return Date.now() + clockSkew;
}

function since(iso) {
  return Math.max(0, (now() - Date.parse(iso)) / 1000);
}

function duration(seconds) {
  const s = Math.floor(seconds);
  if (s < 100) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${String(s % 60).padStart(2, '0')} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${String(Math.floor((s % 3600) / 60)).padStart(2, '0')} min`;
  const days = Math.floor(s / 86400);
  return `${days} d ${Math.floor((s % 86400) / 3600)} h`;
}

function clock(iso) {
  return new Date(iso).toLocaleTimeString([], { hour12: false });
}

const numbers = new Intl.NumberFormat();

function count(number, one, many = `${one}s`) {
  return `${numbers.format(number)} ${number === 1 ? one : many}`;
}

function ending(sentence) {
  return sentence.replace(/[.\s]+$/, '');
}

function walk(child, visit, depth = 0) {
  visit(child, depth);
  for (const below of child.children) walk(below, visit, depth + 1);
}

// The one sentence ----------------------------------------------------------------------------------------------------

/** What is to be said: how bad it is, the sentence, and where that holds a running time, what is read out instead. */
function verdict() {
  const silent = performance.now() - heardAt;
  if (state === null) {
    if (silent < SILENCE_MS) return { mood: 'wait', sign: '…', text: 'Waiting for the first news from Penstock.' };
    return {
      mood: 'lost',
      sign: '⚠',
      title: 'no news',
      text: `No news from Penstock for ${duration(silent / 1000)} — reconnecting.`,
      news: 'No news from Penstock; reconnecting.',
    };
  }
  if (silent >= SILENCE_MS) {
    return {
      mood: 'lost',
      sign: '⚠',
      title: 'no news',
      text: `No news from Penstock for ${duration(silent / 1000)} — reconnecting. What you see below is from ${clock(state.time)}.`,
      news: 'No news from Penstock; reconnecting.',
    };
  }
  const children = { held: [], backoff: [], stuck: [], starting: [], waiting: [], running: [] };
  walk(state.tree, (child) => {
    if (child.kind === 'worker') (children[child.state] ??= []).push(child);
  });
  // A partition that another process has is nobody's outage.
  const shut = state.gates.filter((gate) => !gate.open && !gate.name.startsWith(LEASE));
  children.held = children.held.filter((child) => !child.heldBy?.startsWith(LEASE));
  if (state.tree.state === 'stopping') return { mood: 'busy', sign: '◑', title: 'stopping', text: 'Penstock is stopping, in order.' };
  if (children.stuck.length) return stuck(children.stuck);
  if (shut.length) return outage(shut, children.held.length);
  if (children.backoff.length) return crashed(children.backoff);
  if (children.held.length) return { mood: 'warn', sign: '▮▮', title: 'settling', text: `All gates are open again; ${count(children.held.length, 'child is', 'children are')} about to be started.` };
  const coming = children.starting.length + children.waiting.length;
  if (coming) return { mood: 'busy', sign: '◔', title: 'starting', text: `Penstock is starting: ${count(coming, 'child is', 'children are')} not up yet.` };
  const failed = state.cluster ? state.cluster.nodes.filter((node) => node.failed) : [];
  if (failed.length) return thinner(failed);
  const trouble = deliveryTrouble();
  if (trouble) return trouble;
  const dead = state.delivery.letters.dead;
  const undecided = dead ? `; ${count(dead, 'dead letter waits', 'dead letters wait')} for a decision` : '';
  return {
    mood: 'good',
    sign: '✓',
    text: `All is well: ${count(children.running.length, 'child', 'children')} at work, ${count(state.gates.filter((gate) => !gate.name.startsWith(LEASE)).length, 'gate')} open${undecided}.`,
  };
}

function outage(shut, held) {
  const [first, ...others] = [...shut].sort((a, b) => (b.name in GATE_NAMES) - (a.name in GATE_NAMES));
  const what = first.name in GATE_NAMES ? `${GATE_NAMES[first.name]} has been away` : `The gate “${first.name}” has been shut`;
  const cause = first.cause ? `: ${ending(first.cause)}` : '';
  const parts = [`${what} for ${duration(since(first.since))}${cause}`];
  if (others.length) parts.push(`also shut: ${others.map((gate) => GATE_NAMES[gate.name] ?? gate.name).join(', ')}`);
  const spooled = state.outbox.reduce((sum, each) => sum + each.waiting, 0);
  if (first.name.startsWith('redis') && spooled) parts.push(`${count(spooled, 'accepted event waits', 'accepted events wait')} in the outbox`);
  parts.push(held === 0 ? 'no child is held' : `${count(held, 'child is', 'children are')} held`);
  parts.push('the system keeps answering');
  return {
    mood: 'bad',
    sign: '▲',
    title: first.name in GATE_NAMES ? `${GATE_NAMES[first.name]} away` : `${first.name} shut`,
    text: `${parts.join('; ')}.`,
    news: `${what}${cause}; ${parts.slice(1).filter((part) => !part.endsWith('in the outbox')).join('; ')}.`,
  };
}

function crashed(children) {
  const [first] = children;
  const why = first.lastError ? `: ${ending(`${first.lastError.type}: ${first.lastError.message}`)}` : '';
  const again = first.nextStartIn === null ? 'soon' : `in ${duration(Math.max(0, first.nextStartIn - (now() - Date.parse(state.time)) / 1000) + 1)}`;
  const more = children.length > 1 ? `; ${count(children.length - 1, 'other child does', 'other children do')} the same` : '';
  return {
    mood: 'warn',
    sign: '↻',
    title: 'crashed',
    text: `${first.path} crashed and is started again ${again}${why}${more}.`,
    news: `${first.path} crashed${why}${more}.`,
  };
}

function stuck(children) {
  const text = `${children[0].path} does not stop though it was told to; the log says where it hangs.`;
  return { mood: 'bad', sign: '✖', title: 'stuck', text };
}

/** Everything works, and less would have to fail now than before for that to end. */
function thinner(failed) {
  const names = failed.map((node) => node.address).join(', ');
  const who = failed.length === 1 ? `Redis node ${names} has` : `Redis nodes ${names} have`;
  const back = failed.length === 1 ? 'it is' : 'they are';
  return { mood: 'warn', sign: '◐', title: 'less redundancy', text: `Running, but ${who} failed: until ${back} back, the cluster can bear less.` };
}

function drawBanner() {
  const said = verdict();
  $('banner').dataset.mood = said.mood;
  $('banner-sign').textContent = said.sign;
  $('banner-text').textContent = said.text;
  // Read out when it is news, not every second.
  const news = said.news ?? said.text;
  if (said.mood !== 'wait' && $('spoken').textContent !== news) $('spoken').textContent = news;
  const name = state ? `${state.system} · Penstock` : 'Penstock';
  const title = said.title ? `${said.sign} ${said.title} · ${name}` : name;
  if (document.title !== title) document.title = title;
  drawConnection(said.mood === 'lost');
}

function drawConnection(lost) {
  document.body.classList.toggle('lost', lost);
  const shown = lost ? ['lost', 'connection lost'] : state ? ['live', `live, ${clock(state.time)}`] : ['wait', 'connecting'];
  $('connection').dataset.state = shown[0];
  $('connection-text').textContent = shown[1];
}

// Sections ------------------------------------------------------------------------------------------------------------

function drawGates(gates) {
  const shown = gates.filter((gate) => !gate.name.startsWith(LEASE)).map(({ seconds, ...gate }) => gate);
  redraw('gates', shown, () => {
    $('gates').replaceChildren(
      ...shown.map((gate) =>
        element('li', { class: 'gate', data: { open: gate.open } },
          element('div', { class: 'gate-head' },
            element('span', { class: 'gate-name' }, GATE_NAMES[gate.name] ?? gate.name),
            element('span', { class: 'state', data: { tone: gate.open ? 'good' : 'bad' } }, sign(gate.open ? '●' : '▲'), gate.open ? 'open' : 'shut')),
          element('p', { class: 'gate-since', title: `since ${new Date(gate.since).toLocaleString()}` }, running(gate.since, 'for {}')),
          gate.cause ? element('p', { class: 'gate-cause' }, gate.cause) : null)));
  });
}

function drawTree(root) {
  const rows = [];
  const collect = (child, lead, tail) => {
    // To the second, so that the same moment is the same in the next state.
    const startsAt = child.nextStartIn === null ? null : new Date(Math.round(Date.parse(state.time) / 1000 + child.nextStartIn) * 1000).toISOString();
    rows.push({ ...child, children: undefined, mailboxes: undefined, nextStartIn: undefined, startsAt, queued: queued(child), branch: lead + tail });
    child.children.forEach((below, index) => {
      const last = index === child.children.length - 1;
      const inner = lead + (tail === '├─ ' ? '│  ' : tail === '╰─ ' ? '   ' : '');
      collect(below, inner, last ? '╰─ ' : '├─ ');
    });
  };
  collect(root, '', '');
  redraw('tree', rows, () => $('tree').tBodies[0].replaceChildren(...rows.flatMap(treeRows)));
}

/** A child's row, and below it what went wrong with it, over the whole width. */
function treeRows(child) {
  const [symbol, tone] = STATES[child.state] ?? ['?', 'still'];
  const supervisor = child.kind === 'supervisor';
  const row = element('tr', { data: { path: child.path } },
    element('th', { scope: 'row', title: child.path },
      element('div', { class: 'name' },
        element('span', { class: 'branch', 'aria-hidden': 'true' }, child.branch),
        element('span', { class: supervisor ? 'supervisor' : 'worker' }, child.id))),
    element('td', {}, element('span', { class: 'state', data: { tone } }, sign(symbol), child.state)),
    element('td', { class: 'note', title: child.note }, element('div', { class: 'brief' }, note(child))),
    number(child.incarnation, child.incarnation <= 1),
    number(child.restarts, child.restarts === 0));
  const troubles = troublesOf(child);
  if (!troubles.length) return [row];
  row.className = 'has-trouble';
  const calm = child.state === 'running' ? ' calm' : '';
  return [row, element('tr', { class: `trouble${calm}` }, element('td', { colspan: 5 }, ...troubles.map((text) => element('div', {}, text))))];
}

function number(value, quiet) {
  return element('td', { class: `number ${quiet ? 'quiet' : 'times'}` }, numbers.format(value));
}

function note(child) {
  if (child.heldBy) return `waits for ${GATE_NAMES[child.heldBy] ?? child.heldBy}`;
  if (child.startsAt) return running(child.startsAt, 'again in {}');
  if (child.kind === 'supervisor') return (child.strategy ?? '').replaceAll('_', ' ');
  return [child.note, child.queued].filter(Boolean).join(' · ');
}

/** What stands in its mailboxes; empty when nothing does. */
function queued(child) {
  const full = child.mailboxes.filter((mailbox) => mailbox.depth > 0);
  return full.map((mailbox) => `${numbers.format(mailbox.depth)} of ${numbers.format(mailbox.capacity)} queued in ${mailbox.name}`).join(', ');
}

function troublesOf(child) {
  const troubles = [];
  if (child.lastError) {
    const when = child.state === 'running' ? 'its last crash' : 'crashed';
    troubles.push(`${when}: ${child.lastError.type}: ${child.lastError.message}`);
  }
  if (child.restartsLeft === 0) troubles.push('no restart left: the next crash is passed on to the supervisor above');
  return troubles;
}

function drawStreams(streams) {
  const shown = streams.map(({ observedAt, ...stream }) => ({
    ...stream,
    groups: stream.groups.map((group) => ({ ...group, ...ofGroup(group.name, stream.key) })),
  }));
  redraw('streams', shown, () => {
    const rows = shown.flatMap((stream) => [
      element('tr', {},
        element('th', { scope: 'row', class: 'stream-name', title: `last id ${stream.lastId}` }, stream.key),
        element('td', { class: 'number' }, numbers.format(stream.length)),
        ...(stream.groups.length ? [element('td', { colspan: 4 })] : [element('td', { colspan: 4, class: 'nothing' }, 'no group yet')])),
      ...stream.groups.map((group) =>
        element('tr', {},
          element('th', { scope: 'row', class: 'group-name' }, group.name, ownerOf(group)),
          element('td'),
          group.lag === null
            ? element('td', { class: 'number nothing', title: 'Redis cannot tell' }, 'unknown')
            : element('td', { class: 'number' }, numbers.format(group.lag)),
          element('td', { class: 'number' }, numbers.format(group.pending)),
          retryingOf(group),
          element('td', { class: `number ${group.consumers ? '' : 'alarm'}` }, group.consumers ? numbers.format(group.consumers) : 'none'))),
    ]);
    if (!rows.length) rows.push(element('tr', {}, element('td', { colspan: 6, class: 'nothing' }, 'Not looked at yet.')));
    $('streams').tBodies[0].replaceChildren(...rows);
  });
}

function drawCluster(cluster) {
  $('cluster-panel').hidden = !cluster;
  if (!cluster) return;
  redraw('cluster', cluster.nodes, () => {
    const rows = cluster.nodes.map((node) =>
      element('tr', { data: { node: node.address } },
        element('th', { scope: 'row', class: 'stream-name', title: node.replicaOf ? `copies ${node.replicaOf}` : null }, node.address),
        node.failed ? element('td', { class: 'alarm' }, `${node.role}, failed`) : element('td', {}, node.role),
        node.slots ? element('td', { class: 'number' }, numbers.format(node.slots)) : element('td'),
        element('td', {}, node.streams.join(', '))));
    $('cluster').tBodies[0].replaceChildren(...rows);
  });
}

function drawAccess(access) {
  const asked = access.observedAt !== null;
  redraw('access', [access.events, asked], () => {
    const rows = access.events.map((event) => {
      const status = event.status;
      const tone = status === null || status >= 500 ? 'failed' : status >= 400 ? 'refused' : '';
      return element('tr', {},
        element('td', { title: event.time }, clock(event.time)),
        element('td', {}, event.method),
        element('td', { class: 'endpoint' }, event.endpoint),
        element('td', { class: `number ${tone}` }, status === null ? 'no answer' : status),
        element('td', { class: 'number' }, event.ms === null ? '–' : numbers.format(event.ms)));
    });
    if (!rows.length) rows.push(element('tr', {}, element('td', { colspan: 5, class: 'nothing' }, asked ? 'None yet.' : 'Not looked at yet.')));
    $('access').tBodies[0].replaceChildren(...rows);
  });
}

function setAge(id, text, stale) {
  const age = $(id);
  if (age.textContent !== text) age.textContent = text;
  age.toggleAttribute('data-stale', stale);
}

/** Of what is asked of the database: when it was answered last, if it is not now. */
function setStale(id, { stale, observedAt }) {
  const seen = observedAt ? `as seen ${duration(since(observedAt))} ago, ` : '';
  setAge(id, stale ? `${seen}${stale}` : '', Boolean(stale));
}

function drawAges() {
  if (document.body.classList.contains('lost')) return; // nobody knows whether they still hold
  for (const each of document.querySelectorAll('[data-since]')) {
    const text = phrase(each.dataset.since, each.dataset.form);
    if (each.textContent !== text) each.textContent = text;
  }
  if (state === null) return;
  const oldest = Math.max(0, ...state.streams.map((stream) => since(stream.observedAt)));
  const redisAway = state.gates.some((gate) => gate.name === 'redis' && !gate.open);
  const oldStreams = oldest > STALE_S || (redisAway && state.streams.length > 0);
  setAge('streams-age', oldStreams ? `as seen ${duration(oldest)} ago` : '', oldStreams);
  const nodesAge = state.cluster ? since(state.cluster.observedAt) : 0;
  setAge('cluster-age', nodesAge > STALE_S ? `as seen ${duration(nodesAge)} ago` : '', nodesAge > STALE_S);
  setStale('access-age', state.access);
  setStale('letters-age', state.delivery);
  setStale('members-age', state.delivery);
  setStale('queues-age', state.queues);
}

function draw() {
  $('system').textContent = state.system;
  $('system').title = `instance ${state.instance}`;
  drawGates(state.gates);
  drawTree(state.tree);
  drawStreams(state.streams);
  drawCluster(state.cluster);
  drawAccess(state.access);
  drawDelivery();
  tick();
}

function tick() {
  drawBanner();
  drawAges();
}

// Listening -----------------------------------------------------------------------------------------------------------

function listen() {
  source = new EventSource('/api/v1/live');
  source.addEventListener('state', (event) => {
    state = JSON.parse(event.data);
    heardAt = performance.now();
    clockSkew = Date.parse(state.time) - Date.now();
    draw();
  });
  source.addEventListener('error', () => {
    // The browser connects again by itself after a lost connection, but not after an answer that was an error.
    if (source.readyState === EventSource.CLOSED) setTimeout(listen, REOPEN_MS);
  });
}

listen();
setInterval(tick, 500);
