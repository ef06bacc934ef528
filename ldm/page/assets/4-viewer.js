// Pictures that are shown twice are kept once; a click enlarges one.
(() => {
  "use strict";
  for (const image of document.querySelectorAll("img[data-same]")) {
    image.src = document.getElementById(image.dataset.same).src;
  }
  const viewer = document.getElementById("viewer");
  const part = (name) => document.getElementById(`viewer-${name}`);
  let [row, at] = [[], 0];
  const show = (index) => {
    at = (index + row.length) % row.length;
    const image = row[at];
    const picture = part("picture");
    picture.src = image.src;
    for (const name of ["width", "height", "alt"]) {
      picture.setAttribute(name, image.getAttribute(name));
    }
    picture.classList.toggle("tiny", image.parentElement.classList.contains("tiny"));
    picture.classList.toggle("wide", image.naturalWidth > 2 * image.naturalHeight);
    part("caption").textContent = image.dataset.caption;
    part("rest").textContent = image.dataset.rest;
    part("count").textContent = `${at + 1} of ${row.length}`;
  };
  for (const group of document.querySelectorAll(".pictures, .cards")) {
    const images = [...group.querySelectorAll("img")];
    images.forEach((image, index) => {
      image.parentElement.addEventListener("click", () => {
        row = images;
        show(index);
        viewer.showModal();
      });
    });
  }
  part("back").addEventListener("click", () => show(at - 1));
  part("next").addEventListener("click", () => show(at + 1));
  viewer.addEventListener("click", (event) => {
    if (event.target === viewer || event.target.classList.contains("stage")) viewer.close();
  });
  viewer.addEventListener("close", () => row[at].parentElement.focus());
  for (const button of document.querySelectorAll("dialog .close")) {
    button.addEventListener("click", () => button.closest("dialog").close());
  }
})();
