"use strict";
// Tables that sort by a click on a column's head.
function sortable(table) {
  table.querySelectorAll("th").forEach((head, column) => {
    head.addEventListener("click", () => {
      const falling = head.dataset.order === "up";
      table.querySelectorAll("th").forEach((other) => delete other.dataset.order);
      head.dataset.order = falling ? "down" : "up";
      const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const body = table.tBodies[0];
      const compare = (a, b) => {
        const [x, y] = [key(a), key(b)];
        const missing = (x === "nan") - (y === "nan");
        if (missing) return missing;
        const order = Number.isNaN(Number(x)) || Number.isNaN(Number(y)) ? x.localeCompare(y) : x - y;
        return falling ? -order : order;
      };
      body.append(...[...body.rows].sort(compare));
    });
  });
}

document.querySelectorAll("table.sortable").forEach(sortable);

// On a narrow screen rows become cards, and each cell says which column it is of.
for (const table of document.querySelectorAll(".verdict table, #patients")) {
  const names = [...table.querySelectorAll("th")].map((cell) => cell.innerText);
  for (const row of table.tBodies[0].rows) [...row.cells].forEach((cell, i) => { cell.dataset.label = names[i]; });
}
