"use strict";
const charts = JSON.parse(document.getElementById("charts").textContent);
const drawn = new Map();
const all = (selector, within = document) => [...within.querySelectorAll(selector)];

// Light or dark: as the system says, until the button is pressed.
const system = matchMedia("(prefers-color-scheme: dark)");
const themeButton = document.getElementById("theme");
const theme = () => document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light");
function themeChanged() {
  themeButton.textContent = theme() === "dark" ? "Light" : "Dark";
  themeButton.setAttribute("aria-label", `Switch to ${themeButton.textContent.toLowerCase()} colours`);
  for (const { view } of drawn.values()) view.then((result) => result.finalize());
  drawn.clear();
  drawVisible();
}
themeButton.addEventListener("click", () => {
  document.documentElement.dataset.theme = theme() === "dark" ? "light" : "dark";
  themeChanged();
});
system.addEventListener("change", themeChanged);

// Charts: each is drawn when it is first to be seen, because it takes its width from its place.
function drawVisible() {
  for (const place of all(".view:not([hidden]) .chart")) {
    if (drawn.has(place)) continue;
    const options = { actions: false, renderer: "svg", config: charts[theme()], tooltip: { theme: theme() } };
    const view = vegaEmbed(place, charts.specifications[place.dataset.chart], options);
    drawn.set(place, { view });
    const select = place.closest(".figure").querySelector("select[data-signal]");
    if (select) view.then((result) => choose(result.view, select));
  }
}
const choose = (view, select) => view.signal(select.dataset.signal, select.value).runAsync();
for (const figure of all(".figure")) {
  for (const radio of all(".views input", figure)) {
    radio.addEventListener("change", () => {
      for (const view of all(".view", figure)) view.hidden = view.dataset.view !== radio.value;
      drawVisible();
    });
  }
  for (const select of all("select[data-signal]", figure)) {
    select.addEventListener("change", () => {
      for (const place of all(".chart", figure)) drawn.get(place)?.view.then((result) => choose(result.view, select));
    });
  }
}

// The table: sorted by number where there is one, what is not known last; every word of the filter must occur.
const body = document.querySelector("#cells tbody");
const order = (row, column) => row.cells[column].dataset.order;
function compare(one, other) {
  const numbers = [Number(one), Number(other)];
  return numbers.some(Number.isNaN) ? one.localeCompare(other, "en", { numeric: true }) : numbers[0] - numbers[1];
}
function sortBy(heading) {
  const column = heading.cellIndex;
  const direction = heading.ariaSort === "ascending" ? -1 : 1;
  const known = (row) => order(row, column) !== undefined;
  const rows = [...body.rows].sort((a, b) => {
    if (!known(a) || !known(b)) return known(b) - known(a);
    return direction * compare(order(a, column), order(b, column));
  });
  body.append(...rows);
  for (const other of all("#cells thead th[aria-sort]")) other.ariaSort = "none";
  heading.ariaSort = direction === 1 ? "ascending" : "descending";
}
function filterRows() {
  const words = document.getElementById("filter").value.toLowerCase().split(/\s+/);
  const onlyBest = document.getElementById("best").checked;
  for (const row of body.rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word)) || (onlyBest && !("best" in row.dataset));
  }
  const shown = [...body.rows].filter((row) => !row.hidden).length;
  document.getElementById("shown").textContent = `${shown} of ${body.rows.length}`;
}
if (body) {
  for (const heading of all("#cells thead th[aria-sort]")) heading.firstElementChild.addEventListener("click", () => sortBy(heading));
  document.getElementById("filter").addEventListener("input", filterRows);
  document.getElementById("best").addEventListener("change", filterRows);
}

// Commands: copied where the browser allows it; without this script they can still be selected.
for (const button of all(".copy")) {
  button.hidden = !navigator.clipboard;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(button.previousElementSibling.textContent);
    button.textContent = "Copied";
  });
}

// Answers: without this script all are shown.
const choices = document.querySelector(".choose");
if (choices) {
  choices.hidden = false;
  for (const box of all("input", choices)) {
    const passage = document.querySelector(`[data-passage="${box.value}"]`);
    const show = () => { passage.hidden = !box.checked; };
    box.addEventListener("change", show);
    show();
  }
}

themeChanged();
