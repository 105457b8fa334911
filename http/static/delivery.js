'use strict';

// How delivery stands: outbox, retries, dead letters, replays, losses, processes. Built with the tools of page.js.
// What is decided here goes through a dialog that says first what it would do.

const DEAD_LETTERS = '/api/v1/dead-letters';
const LOSS_IS_NEWS_S = 86400;
const SILENT_S = 60; // a process gives a sign of life every few seconds
const DONE_MS = 8000;

let doneTimer = 0;

// The one sentence ----------------------------------------------------------------------------------------------------

/** What of delivery is to be said in the banner, if anything is. */
function deliveryTrouble() {
  const blocked = state.outbox.find((each) => each.blocked);
  if (blocked) {
    const text = `The stream ${blocked.stream} does not take what waits in the outbox: ${ending(blocked.blocked)}. What is published to it meanwhile waits behind.`;
    return { mood: 'warn', sign: '▲', title: 'outbox blocked', text };
  }
  const loss = state.delivery.losses.find((each) => since(each.detectedAt) < LOSS_IS_NEWS_S);
  if (loss) {
    const what = loss.entries === null ? 'Events' : count(loss.entries, 'event');
    const text = `${what} of ${loss.stream} ${loss.entries === 1 ? 'was' : 'were'} trimmed or deleted before ${loss.group} was given ${loss.entries === 1 ? 'it' : 'them'}; see Losses.`;
    return { mood: 'warn', sign: '◐', title: 'events lost', text };
  }
  return null;
}

// Sections ------------------------------------------------------------------------------------------------------------

function drawDelivery() {
  drawWarnings(state.warnings);
  drawQueues(state.queues);
  drawOutbox(state.outbox);
  drawLetters(state.delivery);
  drawReplays(state.delivery);
  drawLosses(state.delivery.losses);
  drawMembers(state.delivery);
}

/** What is known of a group of a stream beside what Redis says. */
function ofGroup(group, stream) {
  const here = (each) => each.group === group && each.stream === stream;
  return { retry: state.delivery.retries.find(here) ?? null, lease: state.delivery.leases.find(here) ?? null };
}

function retryingOf({ retry }) {
  if (retry === null) return element('td', { class: 'number quiet' }, 0);
  const parked = retry.parked ? `, of them ${numbers.format(retry.parked)} parked behind their key` : '';
  const due = retry.due ? `; the next ${Date.parse(retry.due) <= now() ? 'is due' : `at ${clock(retry.due)}`}` : '';
  const title = `${numbers.format(retry.waiting)} since ${clock(retry.since)}${parked}; at most ${count(retry.attempts, 'attempt')} failed${due}`;
  return element('td', { class: 'number alarm', title }, numbers.format(retry.waiting));
}

/** Who has the partition of an ordered group; nothing for a shared one. */
function ownerOf({ lease }) {
  if (lease === null) return null;
  const title = `epoch ${lease.epoch}`;
  if (lease.owner === null) return element('span', { class: 'owner alarm', title }, 'nobody has it');
  return element('span', { class: 'owner', title }, `at ${lease.owner}`);
}

function empty(columns, text) {
  return element('tr', {}, element('td', { colspan: columns, class: 'nothing' }, text));
}

/** What the start-up checks found that somebody should mend. */
function drawWarnings(warnings) {
  $('warnings-panel').hidden = !warnings.length;
  redraw('warnings', warnings, () => {
    $('warnings').replaceChildren(
      ...warnings.map((each) =>
        element('li', { data: { check: each.check } },
          element('strong', {}, each.where), `: ${each.found}`, each.mend ? element('p', {}, each.mend) : null)));
  });
}

function drawQueues({ queues, observedAt }) {
  $('queues-panel').hidden = !queues.length && observedAt === null;
  const shown = queues.map((queue) => ({
    ...queue,
    consumers: queue.consumers.map(({ idle, ...each }) => ({ ...each, silent: idle > SILENT_S })),
    ...ofGroup(`queue ${queue.name}`, queue.name),
  }));
  redraw('queues', shown, () => {
    $('queues').tBodies[0].replaceChildren(
      ...shown.map((queue) =>
        element('tr', { data: { queue: queue.name } },
          element('th', { scope: 'row', class: 'stream-name' }, queue.name),
          waitingOf(queue),
          element('td', { class: 'number' }, queue.oldest === null ? '' : running(queue.oldest, '{}')),
          element('td', { class: 'number' }, numbers.format(queue.consumers.reduce((sum, each) => sum + each.taken, 0))),
          retryingOf(queue),
          consumersOf(queue.consumers))));
  });
}

function waitingOf({ waiting, returned }) {
  if (!returned) return element('td', { class: 'number' }, numbers.format(waiting));
  const title = `of them ${count(returned, 'job', 'jobs')} whose consumer is gone`;
  return element('td', { class: 'number alarm', title }, numbers.format(waiting + returned));
}

function consumersOf(consumers) {
  const title = consumers.map((each) => `${each.name}: ${count(each.taken, 'job')}${each.silent ? ', no sign of life' : ''}`).join('\n');
  const number = consumers.filter((each) => !each.silent).length;
  return element('td', { class: `number ${number ? '' : 'alarm'}`, title }, number ? numbers.format(number) : 'none');
}

function drawOutbox(outbox) {
  const shown = outbox.map(({ oldest, ...each }) => ({ ...each, since: new Date(Math.round((now() - oldest * 1000) / 5000) * 5000).toISOString() }));
  redraw('outbox', shown, () => {
    const rows = shown.flatMap((each) => {
      const row = element('tr', { class: each.blocked ? 'has-trouble' : null },
        element('th', { scope: 'row', class: 'stream-name' }, each.stream),
        element('td', { class: 'number alarm' }, numbers.format(each.waiting)),
        element('td', { class: 'number' }, running(each.since, '{}')));
      const why = element('tr', {}, element('td', { colspan: 3, class: 'complaint' }, `the stream does not take them: ${each.blocked}`));
      return each.blocked ? [row, why] : [row];
    });
    if (!rows.length) rows.push(empty(3, 'Nothing waits: every accepted event is in Redis.'));
    $('outbox').tBodies[0].replaceChildren(...rows);
  });
}

function drawLetters({ letters, observedAt }) {
  redraw('letters', [letters, observedAt !== null], () => {
    const rows = letters.groups.map(letterRow);
    const shown = letters.groups.reduce((sum, group) => sum + group.count, 0);
    if (shown < letters.dead) rows.push(empty(4, `And ${numbers.format(letters.dead - shown)} more, of other causes.`));
    if (!rows.length) rows.push(empty(4, observedAt === null ? 'Not looked at yet.' : 'None: every event was handled, or is being tried again.'));
    $('letters').tBodies[0].replaceChildren(...rows);
  });
}

function letterRow(group) {
  const what = [group.errorClass, group.errorMessage].filter(Boolean).join(': ') || group.reason;
  const types = group.eventTypes.length ? ` · ${group.eventTypes.join(', ')}` : '';
  const where = `${group.reason} · ${group.group} · ${group.streams.join(', ')}${types}`;
  return element('tr', { data: { fingerprint: group.fingerprint ?? '' } },
    element('td', { class: 'died' }, element('span', { class: 'brief', title: what }, what), element('span', { class: 'where' }, where)),
    element('td', { class: 'number alarm' }, numbers.format(group.count)),
    element('td', { class: 'last', title: `the first ${new Date(group.first).toLocaleString()}` }, running(group.last, '{} ago')),
    element('td', {}, element('div', { class: 'actions' },
      button('Show', () => showLetter(group.example), `Show the last letter: ${what}`),
      button('Replay…', () => replayLetters(whichOf(group)), `Replay letters: ${what}`),
      button('Discard…', () => discardLetters(whichOf(group)), `Discard letters: ${what}`, 'danger'))));
}

/** The filter that means the letters of one row; without a fingerprint nothing but its last letter. */
function whichOf(group) {
  return group.fingerprint === null ? { id: group.example } : { fingerprint: group.fingerprint, reason: group.reason, group: group.group };
}

function drawReplays({ orders, replays }) {
  $('replays-panel').hidden = !orders.length && !replays.length;
  redraw('replays', [orders, replays], () => {
    $('replays').tBodies[0].replaceChildren(
      ...orders.map((order) =>
        element('tr', { data: { order: order.id } },
          element('td', {}, `Dead letters to their ${order.to}, ${numbers.format(order.rate)} a second`),
          element('td', {}, ...progressOf(order.moved, order.total)),
          element('td', {}, running(order.orderedAt, '{} ago'), ` by ${order.orderedBy}`),
          element('td', {}, button('Stop', () => stopOrder(order), 'Stop this replay')))),
      ...replays.map((replay) =>
        element('tr', {},
          element('td', {}, replay.state === 'waiting' ? 'Waits for its turn: ' : '', `${replay.stream} to ${replay.toGroup ? 'the group' : 'the stream'} ${replay.target}`),
          element('td', {}, ...progressOf(replay.replayed, replay.total)),
          element('td', {}, replay.orderedAt ? running(replay.orderedAt, '{} ago') : '', replay.orderedBy ? ` by ${replay.orderedBy}` : ''),
          element('td', {}, button('Stop', () => stopReplay(replay), 'Stop this replay')))));
  });
}

function progressOf(done, total) {
  if (total === null) return [`${numbers.format(done)} events`];
  const text = `${numbers.format(done)} of ${numbers.format(total)}`;
  return [element('progress', { max: Math.max(total, 1), value: done, 'aria-label': text }), ` ${text}`];
}

function drawLosses(losses) {
  $('losses-panel').hidden = !losses.length;
  redraw('losses', losses, () => {
    $('losses').tBodies[0].replaceChildren(
      ...losses.map((loss) =>
        element('tr', {},
          element('th', { scope: 'row' }, `${loss.stream}, ${loss.group}`),
          element('td', { class: 'number alarm' }, loss.entries === null ? 'unknown' : numbers.format(loss.entries)),
          element('td', {}, `${loss.after} and ${loss.before}`),
          element('td', { class: 'last' }, running(loss.detectedAt, '{} ago')))));
  });
}

function drawMembers({ members, observedAt }) {
  const shown = members.map(({ seenAt, ...member }) => ({ ...member, startedAt: undefined, silentSince: since(seenAt) > SILENT_S ? seenAt : null }));
  redraw('members', [shown, observedAt !== null], () => {
    const rows = shown.map((member) =>
      element('tr', { data: { process: member.process } },
        element('th', { scope: 'row', class: 'stream-name' }, member.instance, member.isThis ? element('span', { class: 'owner' }, 'this page') : null),
        element('td', { title: `Penstock ${member.version}` }, `${member.host}, pid ${member.pid}`),
        element('td', { class: 'number' }, numbers.format(member.partitions)),
        member.silentSince ? element('td', { class: 'alarm' }, running(member.silentSince, '{} ago')) : element('td', {}, 'just now')));
    if (!rows.length) rows.push(empty(4, observedAt === null ? 'Not looked at yet.' : 'None is known.'));
    $('members').tBodies[0].replaceChildren(...rows);
  });
}

// Deciding ------------------------------------------------------------------------------------------------------------

/** A button; whatever it does, it does once at a time, and says what went wrong. */
function button(text, act, label, kind = '') {
  const made = element('button', { type: 'button', class: kind, 'aria-label': label === text ? null : label }, text);
  made.addEventListener('click', async () => {
    made.disabled = true;
    try {
      await act();
    } catch (error) {
      complain(error.message);
    } finally {
      made.disabled = false;
    }
  });
  return made;
}

async function call(method, path, body) {
  const headers = { 'X-Penstock-Actor': 'page' };
  if (body !== undefined) headers['Content-Type'] = 'application/json';
  let answer, value;
  try {
    answer = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
    value = await answer.json();
  } catch {
    throw new Error('Penstock did not answer; nothing is known of what became of it.');
  }
  if (!answer.ok) throw new Error(value.detail ?? `Penstock answers with ${answer.status}.`);
  return value;
}

function tell(text) {
  $('done').textContent = text;
  $('done').hidden = false;
  clearTimeout(doneTimer);
  doneTimer = setTimeout(() => { $('done').hidden = true; }, DONE_MS);
}

function openDialog(title, ...content) {
  $('dialog').replaceChildren(element('h2', { id: 'dialog-title' }, title), ...content.filter(Boolean));
  if (!$('dialog').open) $('dialog').showModal();
}

function closeDialog() {
  $('dialog').close();
}

function complain(text) {
  openDialog('That did not work', element('p', { class: 'complaint' }, text), element('div', { class: 'actions' }, button('Close', closeDialog, 'Close')));
}

/** Ask for a yes; `act` gets what was chosen, and what it returns is said when it is done. */
function ask(title, explanation, verb, kind, choices, act) {
  const note = element('input', { type: 'text', id: 'note', maxlength: 2000, autocomplete: 'off' });
  const chosen = () => $('dialog').querySelector('input[name="to"]:checked')?.value;
  openDialog(title,
    ...explanation.map((text) => element('p', {}, text)),
    choices,
    element('label', { for: 'note' }, element('span', { class: 'label' }, 'A note for the record (may be empty)'), note),
    element('div', { class: 'actions' },
      button('Cancel', closeDialog, 'Cancel'),
      button(verb, async () => {
        const said = await act({ note: note.value.trim() || undefined, to: chosen() });
        closeDialog();
        tell(said);
      }, verb, `primary ${kind}`)));
}

async function replayLetters(filter) {
  const preview = await call('POST', `${DEAD_LETTERS}/replay`, { filter, dryRun: true });
  const explanation = [`${count(preview.letters, 'event is', 'events are')} tried again, with the same event ${preview.letters === 1 ? 'id' : 'ids'}, at 50 a second.`];
  if (preview.letters < preview.matching) explanation.push(leftOut(preview));
  if (!preview.letters) {
    openDialog('Nothing can be replayed', ...explanation.slice(1).map((text) => element('p', {}, text)), element('div', { class: 'actions' }, button('Close', closeDialog, 'Close')));
    return;
  }
  ask(`Replay ${count(preview.letters, 'dead letter')}?`, explanation, 'Replay', '', targets(), async ({ note, to }) => {
    const order = await call('POST', `${DEAD_LETTERS}/replay`, { filter, note, to });
    return `Ordered: ${count(order.total, 'dead letter')} will be tried again.`;
  });
}

function leftOut({ letters, matching, trimmed, noEvents, undeclared }) {
  const parts = [];
  if (trimmed) parts.push(`of ${numbers.format(trimmed)} the entry was trimmed, and nothing is left`);
  if (noEvents) parts.push(`${numbers.format(noEvents)} are no events`);
  if (undeclared) parts.push(`${numbers.format(undeclared)} are of groups that this system does not declare`);
  const rest = matching - letters - trimmed - noEvents - undeclared;
  if (rest > 0) parts.push(`${numbers.format(rest)} are more than one order takes`);
  return `${numbers.format(matching - letters)} of ${numbers.format(matching)} are left out: ${parts.join('; ')}.`;
}

function targets() {
  const choice = (value, text, checked) => element('label', {}, element('input', { type: 'radio', name: 'to', value, checked }), ` ${text}`);
  return element('fieldset', {},
    element('legend', {}, 'Who handles them'),
    choice('group', 'only the group in which they died', true),
    choice('stream', 'every group of their stream that has not handled them yet', false));
}

async function discardLetters(filter) {
  const preview = await call('POST', `${DEAD_LETTERS}/discard`, { filter, dryRun: true });
  const explanation = ['They keep their rows and their history until retention removes them, and are never handled.'];
  ask(`Discard ${count(preview.letters, 'dead letter')}?`, explanation, 'Discard', 'danger', null, async ({ note }) => {
    const result = await call('POST', `${DEAD_LETTERS}/discard`, { filter, note });
    return `${count(result.letters, 'dead letter')} discarded.`;
  });
}

async function stopOrder(order) {
  const now = await call('POST', `${DEAD_LETTERS}/orders/${order.id}/cancel`);
  tell(now.state === 'cancelled' ? `Stopped after ${numbers.format(now.moved)} of ${count(now.total, 'letter')}.` : 'It had ended already.');
}

async function stopReplay(replay) {
  const now = await call('POST', `/api/v1/replays/${replay.id}/cancel`);
  tell(`Stopped after ${count(now.replayed, 'event')}.`);
}

async function showLetter(number) {
  const letter = await call('GET', `${DEAD_LETTERS}/${number}`);
  const facts = [
    ['Died', `${new Date(letter.deadAt).toLocaleString()}, after ${count(letter.deliveries, 'delivery', 'deliveries')}`],
    ['Where', `${letter.group}, consumer ${letter.consumer}, entry ${letter.entryId} of ${letter.stream}`],
    ['Event', [letter.eventType, letter.eventId, letter.key === null ? null : `key ${letter.key}`].filter(Boolean).join(', ') || 'none'],
    ['Replays', letter.replays],
    ['Note', letter.note],
  ];
  const table = (name, rows) => element('table', {}, element('caption', { class: 'spoken' }, name), element('tbody', {},
    ...rows.filter(([, value]) => value !== null && value !== '').map(([head, value]) => element('tr', {}, element('th', { scope: 'row' }, head), element('td', {}, value)))));
  const decided = letter.status === 'dead'
    ? [button('Discard…', () => discardLetters({ id: number }), 'Discard this letter', 'danger'), button('Replay…', () => replayLetters({ id: number }), 'Replay this letter')]
    : [];
  openDialog(`Dead letter ${number}: ${letter.status}`,
    element('p', { class: 'complaint' }, [letter.errorClass, letter.errorMessage].filter(Boolean).join(': ') || letter.reason),
    table('What is known of it', facts),
    table('Its fields', Object.entries(letter.fields)),
    letter.fieldsExact ? null : element('p', { class: 'label' }, 'What may be a secret, or is very long, is hidden here; the table has the fields as they came.'),
    letter.traceback ? element('pre', { tabindex: 0, 'aria-label': 'Traceback' }, letter.traceback) : null,
    letter.audit.length ? table('Its history', letter.audit.map((each) => [clock(each.at), `${each.action} by ${each.by}${each.note ? `: ${each.note}` : ''}`])) : null,
    element('div', { class: 'actions' }, ...decided, button('Close', closeDialog, 'Close')));
}
