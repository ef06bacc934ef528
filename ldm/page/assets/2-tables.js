// A click on a column's name sorts by it; the next click turns it round.
(() => {
  "use strict";
  const words = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });
  const compare = (a, b) => {
    const [x, y] = [a.dataset.value, b.dataset.value];
    if (x !== undefined && y !== undefined) return Number(x) - Number(y);
    return words.compare(a.firstChild.textContent, b.firstChild.textContent);
  };
  // cells without a number stay below, whichever way the others are sorted
  const missing = (cell, numeric) => (numeric && !isFinite(cell.dataset.value ?? NaN) ? 1 : 0);
  for (const table of document.querySelectorAll("table")) {
    const heads = [...table.querySelectorAll("th")];
    heads.forEach((head, column) => {
      head.firstElementChild.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        const numeric = head.classList.contains("number");
        const body = table.tBodies[0];
        const rows = [...body.rows];
        rows.sort((a, b) => {
          const [x, y] = [a.cells[column], b.cells[column]];
          const gaps = missing(x, numeric) - missing(y, numeric);
          if (gaps || (missing(x, numeric) && missing(y, numeric))) return gaps;
          return up ? compare(x, y) : compare(y, x);
        });
        body.append(...rows);
        for (const other of heads) other.setAttribute("aria-sort", "none");
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
      });
    });
  }
})();
