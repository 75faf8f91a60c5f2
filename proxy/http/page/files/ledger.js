// What the ledger says of the last 30 days, where one is kept.

const PAUSE = 60_000;
const DAY_SECONDS = 86_400;
const NOTHING = {
  requests: 0,
  not_completed: 0,
  tokens_in: 0,
  tokens_out: 0,
  seconds: 0,
  dollars: 0,
};

const field = (group) => (group === "keys" ? "key" : "model");

export const daily = {
  isKept: false,
  days: [],
  times: [],
  rows: [],
  today: null,
  asked: -Infinity,

  // Asks again once a minute; without a ledger never.
  async refresh() {
    if (Date.now() - this.asked < PAUSE) return;
    this.asked = Date.now();
    const answer = await fetch("/admin/usage?keys=all", { cache: "no-store" });
    if (answer.status === 404) this.asked = Infinity;
    if (!answer.ok) return;
    const { data, since, today } = await answer.json();
    const began = Date.parse(since) / 1000;
    const count = Math.floor((Date.now() / 1000 - began) / DAY_SECONDS) + 1;
    this.times = Array.from({ length: count }, (_, index) => began + index * DAY_SECONDS);
    this.days = this.times.map((time) => new Date(time * 1000).toISOString().slice(0, 10));
    this.rows = data;
    this.today = today.dollars;
    this.isKept = true;
  },

  spent(group, name, date) {
    const its = this.rows.filter((row) => row.day === date && row[field(group)] === name);
    return its.reduce((total, row) => total + row.dollars, 0);
  },
};

export const spentToday = () => daily.today;

// Of each key or model in all days together, the most expensive first, as of samples.
export const dailyTotals = (group) => {
  const found = new Map();
  for (const row of daily.rows) {
    const name = row[field(group)];
    const total = found.get(name) ?? { ...NOTHING };
    total.requests += row.requests;
    total.not_completed += row.requests - row.completed;
    total.tokens_in += row.tokens_in;
    total.tokens_out += row.tokens_out;
    total.seconds += row.execution_seconds;
    total.dollars += row.dollars;
    found.set(name, total);
  }
  return [...found].sort(([, a], [, b]) => b.dollars - a.dollars || b.requests - a.requests);
};
