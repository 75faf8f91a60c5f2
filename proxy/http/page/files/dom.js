// Elements and words. Whatever comes from the proxy becomes text: nothing here reads markup.

const SVG = "http://www.w3.org/2000/svg";

const filled = (element, attributes, children) => {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
};

export const byId = (id) => document.getElementById(id);

export const make = (tag, attributes = {}, ...children) =>
  filled(document.createElement(tag), attributes, children);

export const draw = (tag, attributes = {}, ...children) =>
  filled(document.createElementNS(SVG, tag), attributes, children);

export const button = (text, action, attributes = {}) => {
  const made = make("button", { type: "button", ...attributes }, text);
  made.addEventListener("click", action);
  return made;
};

// Shows rows in a table's body; each row is a list of cells, text or elements, the first its head.
// What has the focus keeps it, where a row of the same name is there again.
export const fillTable = (table, rows, empty) => {
  const headings = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
  const body = table.tBodies[0];
  const focused = body.contains(document.activeElement) ? document.activeElement.ariaLabel : null;
  const cell = (content, index) =>
    make(
      index === 0 ? "th" : "td",
      { scope: index === 0 ? "row" : null, "data-heading": headings[index] },
      content ?? "–",
    );
  body.replaceChildren(...rows.map((cells) => make("tr", {}, ...cells.map(cell))));
  if (!rows.length) {
    const nothing = make("td", { colspan: headings.length, class: "quiet" }, empty);
    body.append(make("tr", {}, nothing));
  }
  if (focused) [...body.querySelectorAll("button")].find((b) => b.ariaLabel === focused)?.focus();
};

export const seconds = (value) => {
  if (value === null || value === undefined) return "–";
  if (value < 1) return `${Math.round(value * 1000)} ms`;
  if (value < 100) return `${value < 10 ? value.toFixed(1) : Math.round(value)} s`;
  if (value < 6000) return `${Math.round(value / 60)} min`;
  return `${(value / 3600).toFixed(1)} h`;
};

export const count = (value) =>
  value >= 10_000
    ? new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 }).format(value)
    : new Intl.NumberFormat("en", { maximumFractionDigits: 1 }).format(value);

export const dollars = (value) => {
  if (!value) return "$0";
  return value < 0.01 ? `$${value.toPrecision(2)}` : `$${value.toFixed(2)}`;
};

export const clock = (unix) =>
  new Date(unix * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });

export const dayOfUTC = (unix) =>
  new Date(unix * 1000).toLocaleDateString([], { timeZone: "UTC", month: "short", day: "numeric" });

export const day = (unix) => new Date(unix * 1000).toLocaleDateString();
