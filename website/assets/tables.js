// Long tables sort by a click on a heading; those that don't fit on a screen filter by words.

const SORTED_FROM = 8; // rows
const FILTERED_FROM = 20;

// The number with which a text begins, such as "25,557,032", "4,089.2 M" or "24.01 % on …".
function leadingNumber(text) {
  const found = /^[^\d\p{L}]*?([+\-−]?[\d,]*\.?\d+(?:e[+-]?\d+)?)/u.exec(text);
  return found ? Number(found[1].replaceAll(",", "").replace("−", "-")) : NaN;
}

function textOf(row, column) {
  return row.cells[column].textContent.trim();
}

// Empty cells come last, in either direction.
function compare(a, b, sign) {
  if (!a || !b || a === "–" || b === "–") {
    return (!a || a === "–") - (!b || b === "–");
  }
  const difference = leadingNumber(a) - leadingNumber(b);
  return sign * (Number.isNaN(difference) || difference === 0
    ? a.localeCompare(b, "en", { numeric: true }) : difference);
}

function sortBy(table, column) {
  const heading = table.tHead.rows[0].cells[column];
  const ascending = heading.getAttribute("aria-sort") !== "ascending";
  for (const cell of table.tHead.rows[0].cells) cell.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  const rows = [...table.tBodies[0].rows];
  const sign = ascending ? 1 : -1;
  rows.sort((a, b) => compare(textOf(a, column), textOf(b, column), sign));
  table.tBodies[0].append(...rows);
}

function addSorting(table) {
  [...table.tHead.rows[0].cells].forEach((cell, column) => {
    cell.classList.add("sortable");
    cell.tabIndex = 0;
    cell.addEventListener("click", () => sortBy(table, column));
    cell.addEventListener("keydown", (event) => {
      if (event.key === "Enter") sortBy(table, column);
    });
  });
}

function addFilter(table) {
  const bar = document.createElement("div");
  const input = document.createElement("input");
  const count = document.createElement("output");
  bar.className = "table-filter";
  input.type = "search";
  input.placeholder = "Filter rows";
  input.setAttribute("aria-label", "Filter the rows of the table");
  bar.append(input, count);
  const rows = [...table.tBodies[0].rows];
  const filter = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
    count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows`;
  };
  input.addEventListener("input", filter);
  filter();
  (table.closest(".md-typeset__scrollwrap") ?? table).before(bar);
}

function improveTables() {
  for (const table of document.querySelectorAll(".md-content table:not([class])")) {
    const rows = table.tHead?.textContent.trim() ? table.tBodies[0]?.rows.length : 0;
    if (rows >= SORTED_FROM) addSorting(table);
    if (rows >= FILTERED_FROM) addFilter(table);
  }
}

document.addEventListener("DOMContentLoaded", () => requestAnimationFrame(improveTables));
