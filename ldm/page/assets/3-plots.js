// The point nearest to the pointer is named below its plot.
(() => {
  "use strict";
  for (const area of document.querySelectorAll(".area")) {
    const readout = area.closest("figure").querySelector(".readout");
    const said = readout.textContent;
    const points = [...area.querySelectorAll("circle")];
    let near = null;
    const pick = (point) => {
      near?.classList.remove("near");
      near = point;
      near?.classList.add("near");
      readout.textContent = near ? near.dataset.text : said;
    };
    area.addEventListener("pointermove", (event) => {
      const box = area.getBoundingClientRect();
      const away = (point) => Math.hypot(
        (parseFloat(point.getAttribute("cx")) / 100) * box.width - (event.clientX - box.left),
        (parseFloat(point.getAttribute("cy")) / 100) * box.height - (event.clientY - box.top),
      );
      let [best, least] = [null, Infinity];
      for (const point of points) {
        const distance = away(point);
        if (distance < least) [best, least] = [point, distance];
      }
      pick(best);
    });
    area.addEventListener("pointerleave", () => pick(null));
  }
})();
