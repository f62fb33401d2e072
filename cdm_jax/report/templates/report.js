"use strict";
// Sliders of the galleries, tables that can be sorted, and the chooser above the table of patients.

function gallery(element) {
  const slices = JSON.parse(element.dataset.slices);
  const slider = element.querySelector("input[type=range]");
  const output = element.querySelector("output");
  const images = [...element.querySelectorAll(".slice")];
  const titles = images.map((image) => image.getAttribute("aria-label"));
  const last = Math.max(slices.length - 1, 1);
  for (const sprite of element.querySelectorAll(".sprite")) {
    sprite.style.backgroundSize = `100% ${100 * slices.length}%`;
  }
  const move = () => {
    const place = Number(slider.value);
    const text = `${place + 1} of ${slices.length}`;
    output.textContent = text;
    slider.setAttribute("aria-valuetext", `slice ${text}, index ${slices[place]}`);
    for (const sprite of element.querySelectorAll(".sprite")) {
      sprite.style.backgroundPosition = `0 ${(100 * place) / last}%`;
    }
    images.forEach((image, n) => image.setAttribute("aria-label", `${titles[n]}, slice ${text}`));
  };
  slider.addEventListener("input", move);
  for (const radio of element.querySelectorAll("input[type=radio]")) {
    radio.addEventListener("change", () => { element.dataset.show = radio.value; });
    if (radio.checked) element.dataset.show = radio.value; // a browser may remember the choice
  }
  move();
}

function cellValue(row, column) {
  const text = row.cells[column].textContent.trim();
  const number = parseFloat(text);
  return Number.isNaN(number) ? text : number;
}

function compareCells(first, second) {
  if (typeof first === typeof second) {
    return typeof first === "number" ? first - second : first.localeCompare(second);
  }
  return typeof first === "number" ? -1 : 1; // what has no number comes last
}

function sort(table, column, ascending) {
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => [cellValue(row, column), row]);
  const numbered = ([value]) => typeof value === "number";
  rows.sort((a, b) => {
    const order = compareCells(a[0], b[0]);
    return ascending || numbered(a) !== numbered(b) ? order : -order;
  });
  body.append(...rows.map(([, row]) => row));
  [...table.tHead.rows[0].cells].forEach((cell, n) => {
    if (n === column) cell.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    else cell.removeAttribute("aria-sort");
  });
}

function sortable(table) {
  [...table.tHead.rows[0].cells].forEach((cell, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = cell.textContent;
    cell.replaceChildren(button);
    button.addEventListener("click", () => {
      const ascending = cell.getAttribute("aria-sort") !== "ascending";
      sort(table, column, ascending);
      const live = document.getElementById(table.dataset.live);
      if (live) {
        const order = ascending ? "ascending" : "descending";
        live.textContent = `${live.textContent.split("; ")[0]}; by ${button.textContent}, ${order}`;
      }
    });
  });
}

function chooser() {
  const table = document.getElementById("patients-table");
  if (!table) return;
  const { columns, values } = JSON.parse(document.getElementById("patients-data").textContent);
  const [row, place] = ["row", "place"].map((id) => document.getElementById(id));
  const fill = () => {
    const numbers = values[place.value][row.value];
    for (const line of table.tBodies[0].rows) {
      numbers[line.dataset.subject].forEach((number, n) => {
        line.cells[n + 1].textContent = number === null ? "–" : number.toFixed(columns[n][2]);
      });
    }
    document.getElementById("patients-state").textContent = `${row.value}, ${place.value}`;
    const head = [...table.tHead.rows[0].cells];
    const column = head.findIndex((cell) => cell.hasAttribute("aria-sort"));
    if (column >= 0) sort(table, column, head[column].getAttribute("aria-sort") === "ascending");
  };
  document.querySelector("[data-chooser]").hidden = false;
  for (const select of [row, place]) select.addEventListener("change", fill);
  fill();
}

document.querySelectorAll("[data-gallery]").forEach(gallery);
document.querySelectorAll("[data-sortable]").forEach(sortable);
chooser();
