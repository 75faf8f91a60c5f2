// The status page: asks the proxy every few seconds how things are, and shows it.

import * as chat from "./chat.js";
import { byId, clock, count, dayOfUTC, dollars, fillTable, make, seconds } from "./dom.js";
import { showKeys } from "./keys.js";
import { Plot } from "./plots.js";
import { daily, dailyTotals, spentToday } from "./ledger.js";
import { Samples, largest, level, rate, totals } from "./samples.js";

const PAUSE = 5000;
const PAUSE_IN_A_START = 1500;
const MAX_LINES = 6;

const samples = new Samples();
const plots = {
  requests: new Plot(byId("figures"), "Requests a minute", count),
  first: new Plot(byId("figures"), "Time to the first token, where a worker was up", seconds),
  now: new Plot(byId("figures"), "Under way", count),
  cold: new Plot(byId("figures"), "Waited for a cold start", seconds),
  workers: new Plot(byId("figures"), "Workers", count),
  errors: new Plot(byId("figures"), "Errors a minute", count),
};
const spendingPlot = new Plot(byId("spending-figure"), "Dollars an hour", dollars);

const add = (numbers) => numbers.reduce((total, number) => total + (number ?? 0), 0);
const range = () => Number(byId("range").value);
const now = () => Math.max(...samples.current.map(({ time }) => time), 0);

const tile = (name, value) => make("div", {}, make("dt", {}, name), make("dd", {}, value));

const showTiles = (answers) => {
  const hour = samples.parts(3600, now()).flatMap((part) => part.samples);
  const requests = answers.flatMap(({ endpoints }) => endpoints.map((one) => one.requests));
  const minutes = samples.parts(900, now()).slice(-6);
  const lately = rate(minutes, 60, (one) => one.completed + one.failed + one.left);
  const spent = hour.flatMap((one) => Object.values(one.models).map((share) => share.dollars));
  byId("tiles").replaceChildren(
    tile("Requests a minute", count(add(lately) / lately.length)),
    tile("Running", count(add(requests.map((one) => one.running)))),
    tile("Waiting", count(add(requests.map((one) => one.waiting)))),
    tile("Cold starts, last hour", count(add(hour.map((one) => one.cold)))),
    tile("Errors, last hour", count(add(hour.map((one) => one.failed)))),
    tile("Spent, last hour", dollars(add(spent))),
    ...(spentToday() === null ? [] : [tile("Spent today (UTC)", dollars(spentToday()))]),
  );
};

const workersOf = (workers) => {
  if (!workers) return "not known lately";
  const told = Object.entries(workers).filter(([, number]) => number);
  return told.length ? told.map(([what, number]) => `${number} ${what}`).join(", ") : "none";
};

const startOf = (start) => {
  if (!start) return "–";
  const usual = start.usual_seconds === null ? "not known" : seconds(start.usual_seconds);
  if (start.elapsed_seconds === null) return usual;
  return `${usual}; now ${seconds(start.elapsed_seconds)}${start.phase ? `, ${start.phase}` : ""}`;
};

const budgetOf = (budget) =>
  budget ? `${dollars(budget.spent)} of ${dollars(budget.dollars)}` : "no daily budget";

const stateOf = ({ state, reason }) => {
  const word = make("span", { class: `state state-${state}` }, state);
  return make("span", {}, word, reason ? `: ${reason}` : "");
};

// An endpoint as all copies know it: its workers are the same, its requests add up.
const together = (answers) => {
  const found = new Map();
  for (const endpoint of answers.flatMap(({ endpoints }) => endpoints)) {
    const one = found.get(endpoint.name) ?? { ...endpoint, requests: {} };
    for (const [what, number] of Object.entries(endpoint.requests)) {
      one.requests[what] = (one.requests[what] ?? 0) + number;
    }
    found.set(endpoint.name, one);
  }
  return [...found.values()];
};

const showEndpoints = (answers) => {
  const rows = together(answers).map((one) => [
    one.name,
    stateOf(one),
    workersOf(one.workers),
    `${one.requests.waiting} waiting${one.requests.in_line ? `, ${one.requests.in_line} in line` : ""}`,
    count(one.requests.running),
    startOf(one.start),
    budgetOf(one.daily_budget),
    one.models.join(", "),
  ]);
  fillTable(byId("endpoints-table"), rows, "No endpoint is served.");
};

const showRequests = (answers) => {
  const live = answers.flatMap((answer) => answer.live.requests);
  const left = add(answers.map((answer) => answer.live.total)) - live.length;
  const rows = live
    .sort((a, b) => b.seconds - a.seconds)
    .map((one) => [one.id, one.key, one.model, seconds(one.seconds), one.phase]);
  if (left > 0) rows.push([`and ${left} more`]);
  fillTable(byId("live-table"), rows, "Nothing is under way.");
  const errors = answers
    .flatMap((answer) => answer.errors)
    .sort((a, b) => b.time - a.time)
    .slice(0, 20)
    .map((one) => [clock(one.time), one.outcome, `${one.status}`, one.key, one.model, one.id]);
  fillTable(byId("errors-table"), errors, "None that this proxy remembers.");
};

const showPlots = () => {
  const parts = samples.parts(range(), now());
  const times = parts.map(({ time }) => time);
  const perMinute = (of) => rate(parts, 60, of);
  const workers = (what) => largest(parts, (one) => one.now.workers?.[what] ?? null);
  const line = (name, values) => ({ name, values });
  plots.requests.set(times, [
    line("completed", perMinute((one) => one.completed)),
    line("failed", perMinute((one) => one.failed)),
    line("left by the client", perMinute((one) => one.left)),
  ]);
  plots.errors.set(times, [line("failed", perMinute((one) => one.failed))]);
  plots.first.set(times, [
    line("median", largest(parts, (one) => one.first_token?.[0] ?? null)),
    line("95th percentile", largest(parts, (one) => one.first_token?.[1] ?? null)),
  ]);
  plots.now.set(times, [
    line("running", level(parts, (one) => one.now.requests.running ?? 0)),
    line("waiting", level(parts, (one) => one.now.requests.waiting ?? 0)),
  ]);
  plots.cold.set(times, [line("longest wait", largest(parts, (one) => one.cold_seconds))]);
  plots.workers.set(
    times,
    ["idle", "running", "starting", "throttled", "unhealthy"].map((what) =>
      line(what, workers(what)),
    ),
  );
};

const named = (name) => name || "(none)";

// What was spent lately, by the samples: [times, lines, totals].
const lately = (group) => {
  const parts = samples.parts(range(), now());
  const found = totals(parts, group);
  const lines = found.slice(0, MAX_LINES).map(([name]) => ({
    name: named(name),
    values: rate(parts, 3600, (one) => one[group][name]?.dollars ?? 0),
  }));
  return [parts.map(({ time }) => time), lines, found];
};

const byDay = (group) => {
  const found = dailyTotals(group);
  const lines = found.slice(0, MAX_LINES).map(([name]) => ({
    name: named(name),
    values: daily.days.map((date) => daily.spent(group, name, date)),
  }));
  return [daily.times, lines, found];
};

const showSpending = () => {
  const isByDay = byId("span").value === "days";
  byId("span").options[1].hidden = !daily.isKept;
  const [times, lines, found] = (isByDay ? byDay : lately)(byId("group").value);
  spendingPlot.name(isByDay ? "Dollars a day" : "Dollars an hour", isByDay ? dayOfUTC : clock);
  spendingPlot.set(times, lines);
  const rows = found.map(([name, share]) => [
    named(name),
    count(share.requests),
    count(share.not_completed),
    count(share.tokens_in),
    count(share.tokens_out),
    seconds(share.seconds),
    dollars(share.dollars),
  ]);
  fillTable(byId("spending-table"), rows, "Nothing in this time.");
};

const show = () => {
  const answers = samples.current;
  if (!answers.length) return;
  const last = answers.reduce((a, b) => (a.time > b.time ? a : b));
  const copies = answers.length > 1 ? `, ${answers.length} copies` : "";
  byId("whose").textContent = `${last.key}, version ${last.version}${copies}`;
  showTiles(answers);
  showEndpoints(answers);
  showRequests(answers);
  showPlots();
  showSpending();
  chat.know(last.models, together(answers));
};

const refresh = async () => {
  const answer = await fetch(`/admin/status?have=${samples.have}`, { cache: "no-store" });
  if (answer.status === 401) {
    location.reload(); // the session has ended: to the login
    return;
  }
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.error?.message);
  samples.add(body);
  await daily.refresh();
  byId("trouble").textContent = "";
  show();
};

const run = async () => {
  for (;;) {
    try {
      if (!document.hidden) await refresh();
    } catch (error) {
      byId("trouble").textContent = `What is shown is old: ${error.message}`;
    }
    const pause = chat.isWaiting() ? PAUSE_IN_A_START : PAUSE;
    await new Promise((done) => setTimeout(done, document.hidden ? 1000 : pause));
  }
};

for (const id of ["range", "group", "span"]) byId(id).addEventListener("change", show);
byId("log-out").addEventListener("click", async () => {
  await fetch("/admin/session", { method: "DELETE" });
  location.reload();
});
run();
showKeys();
