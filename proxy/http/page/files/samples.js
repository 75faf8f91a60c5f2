// The samples of all copies of the proxy that have answered, put together by their times.

const KEPT_SECONDS = 7200;
const GONE_MILLISECONDS = 60_000;

export class Samples {
  #copies = new Map();
  #step = 10;

  // What the proxy is told, so that it leaves out what we have: its copies take turns in answering.
  get have() {
    return [...this.#copies].map(([id, copy]) => `${id}:${copy.number}`).join(",");
  }

  add(answer) {
    this.#step = answer.step_seconds;
    const copy = this.#copies.get(answer.copy) ?? { number: 0, byTime: new Map() };
    for (const sample of answer.samples) {
      copy.byTime.set(sample.time, sample);
      copy.number = Math.max(copy.number, sample.number);
    }
    for (const time of copy.byTime.keys()) {
      if (time < answer.time - KEPT_SECONDS) copy.byTime.delete(time);
    }
    copy.last = answer;
    copy.seen = Date.now();
    this.#copies.set(answer.copy, copy);
  }

  // The last answers of the copies that still give some.
  get current() {
    const recent = [...this.#copies.values()].filter(
      (copy) => Date.now() - copy.seen < GONE_MILLISECONDS,
    );
    return recent.map((copy) => copy.last);
  }

  // The last so many seconds in about 120 parts, each with its time, its length, and for every
  // moment in it the samples of all copies.
  parts(seconds, now) {
    const step = this.#step;
    const length = Math.max(step, Math.round(seconds / 120 / step) * step);
    const end = Math.floor(now / step) * step;
    const parts = [];
    for (let time = end - seconds; time < end; time += length) {
      const moments = [];
      for (let moment = time; moment < time + length; moment += step) {
        const here = [...this.#copies.values()].map((copy) => copy.byTime.get(moment));
        if (here.some(Boolean)) moments.push(here.filter(Boolean));
      }
      parts.push({ time, length, moments, samples: moments.flat() });
    }
    return parts;
  }
}

const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);
const most = (numbers) => {
  const known = numbers.filter((number) => number !== null && number !== undefined);
  return known.length ? Math.max(...known) : null;
};

// How many there were in so many seconds, at the rate of each part.
export const rate = (parts, seconds, of) =>
  parts.map(({ samples, length }) =>
    samples.length ? (sum(samples.map(of)) * seconds) / length : null,
  );

// The most there were at once, in all copies together.
export const level = (parts, of) =>
  parts.map(({ moments }) => most(moments.map((samples) => sum(samples.map(of)))));

// The largest that any copy tells.
export const largest = (parts, of) => parts.map(({ samples }) => most(samples.map(of)));

// What came of each key or model in all parts together, the most expensive first.
export const totals = (parts, group) => {
  const found = new Map();
  for (const sample of parts.flatMap((part) => part.samples)) {
    for (const [name, share] of Object.entries(sample[group])) {
      const total = found.get(name) ?? {};
      for (const [what, value] of Object.entries(share)) total[what] = (total[what] ?? 0) + value;
      found.set(name, total);
    }
  }
  const order = ([, a], [, b]) => b.dollars - a.dollars || b.requests - a.requests;
  return [...found].sort(order);
};
