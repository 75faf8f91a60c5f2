// Lines over time, drawn as SVG. Arrow keys or a pointer show the values of a moment.

import { clock, draw, make } from "./dom.js";

const HEIGHT = 150;
const LEFT = 46;
const TOP = 8;
const BOTTOM = 20;

// A round number that is not below the value: 1, 2 or 5 times a power of ten.
const roundUp = (value) => {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value * 0.999);
};

// `M x y L x y ...`, with a new beginning after each value that is not known.
const path = (values, x, y) => {
  let isBroken = true;
  const parts = [];
  values.forEach((value, index) => {
    if (value === null) {
      isBroken = true;
      return;
    }
    parts.push(`${isBroken ? "M" : "L"}${x(index).toFixed(1)} ${y(value).toFixed(1)}`);
    isBroken = false;
  });
  return parts.join("");
};

// A value with none beside it would be a line of no length.
const dots = (values, x, y, index) =>
  values.flatMap((value, at) => {
    const isAlone = value !== null && (values[at - 1] ?? null) === null;
    if (!isAlone || (values[at + 1] ?? null) !== null) return [];
    return [draw("circle", { class: `dot line-${index}`, cx: x(at), cy: y(value), r: 2.5 })];
  });

export class Plot {
  // `format` turns a value into words.
  constructor(parent, title, format) {
    this.title = title;
    this.format = format;
    this.when = clock;
    this.times = [];
    this.lines = [];
    this.cursor = null;
    this.svg = draw("svg", { role: "img", tabindex: "0" });
    this.legend = make("div", { class: "legend" });
    this.told = make("output", { class: "quiet", "aria-live": "polite" });
    this.caption = make("figcaption", {}, title);
    parent.append(make("figure", {}, this.caption, this.svg, this.legend, this.told));
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => this.move(null));
    this.svg.addEventListener("blur", () => this.move(null));
    this.svg.addEventListener("keydown", (event) => this.step(event));
    new ResizeObserver(() => this.show()).observe(this.svg);
  }

  // Another title, and what turns a time into words.
  name(title, when) {
    this.title = this.caption.textContent = title;
    this.when = when;
  }

  // `lines`: [{ name, values }], each value a number, or null where it is not known.
  set(times, lines) {
    this.times = times;
    this.lines = lines;
    this.show();
  }

  point(event) {
    const box = this.svg.getBoundingClientRect();
    const share = (event.clientX - box.left - LEFT) / Math.max(1, box.width - LEFT);
    this.move(Math.round(share * (this.times.length - 1)));
  }

  step(event) {
    const steps = { ArrowLeft: -1, ArrowRight: 1, PageUp: -30, PageDown: 30 };
    const ends = { Home: 0, End: this.times.length - 1, Escape: null };
    if (event.key in steps) this.move((this.cursor ?? this.times.length - 1) + steps[event.key]);
    else if (event.key in ends) this.move(ends[event.key]);
    else return;
    event.preventDefault();
  }

  move(cursor) {
    const last = this.times.length - 1;
    this.cursor = cursor === null || last < 0 ? null : Math.min(Math.max(cursor, 0), last);
    this.show();
  }

  valuesAt(index) {
    const told = ({ name, values }) =>
      `${name} ${values[index] === null ? "unknown" : this.format(values[index])}`;
    return this.lines.map(told).join(", ");
  }

  show() {
    const width = this.svg.clientWidth;
    if (!width) return;
    const known = this.lines.flatMap(({ values }) => values.filter((value) => value !== null));
    const top = roundUp(known.reduce((most, value) => Math.max(most, value), 0));
    const last = Math.max(1, this.times.length - 1);
    const x = (index) => LEFT + (index / last) * (width - LEFT - 4);
    const y = (value) => TOP + (1 - value / top) * (HEIGHT - TOP - BOTTOM);
    this.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.svg.replaceChildren(
      ...this.grid(top, x, y, width),
      ...this.lines.flatMap(({ values }, index) => [
        draw("path", { class: `line line-${index}`, d: path(values, x, y) }),
        ...dots(values, x, y, index),
      ]),
      ...this.marked(x),
    );
    this.tell();
  }

  grid(top, x, y, width) {
    const rows = [0, top / 2, top].flatMap((value) => [
      draw("line", { class: "rule", x1: LEFT, x2: width, y1: y(value), y2: y(value) }),
      draw("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, this.format(value)),
    ]);
    if (this.times.length < 2) return rows;
    const label = (index, anchor) =>
      draw("text", { x: x(index), y: HEIGHT - 4, "text-anchor": anchor }, this.when(this.times[index]));
    const middle = Math.floor(this.times.length / 2);
    return [
      ...rows,
      label(0, "start"),
      label(middle, "middle"),
      label(this.times.length - 1, "end"),
    ];
  }

  marked(x) {
    if (this.cursor === null) return [];
    const at = x(this.cursor);
    return [draw("line", { class: "cursor", x1: at, x2: at, y1: TOP, y2: HEIGHT - BOTTOM })];
  }

  tell() {
    const names = this.lines.map(({ name }, index) =>
      make("span", { class: `key line-${index}` }, name),
    );
    this.legend.replaceChildren(...names);
    const isMarked = this.cursor !== null;
    this.told.textContent = isMarked
      ? `${this.when(this.times[this.cursor])}: ${this.valuesAt(this.cursor)}`
      : "";
    const now = this.times.length ? this.valuesAt(this.times.length - 1) : "nothing yet";
    this.svg.setAttribute("aria-label", `${this.title}. Last: ${now}. Arrow keys show others.`);
  }
}
