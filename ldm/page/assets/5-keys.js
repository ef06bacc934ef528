// Arrow keys and j, k page; the bar says which section is on the screen.
(() => {
  "use strict";
  const get = (id) => document.getElementById(id);
  const [viewer, help, bar] = [get("viewer"), get("help"), document.querySelector(".bar")];
  const sections = [...document.querySelectorAll("main > section")];
  const links = [...bar.querySelectorAll("li a")];
  const line = () => bar.offsetHeight + 40;
  const current = () => {
    const end = window.innerHeight + window.scrollY >= document.body.scrollHeight - 2;
    if (end && window.scrollY > 0) return sections.length - 1;
    return sections.findLastIndex((section) => section.getBoundingClientRect().top <= line());
  };
  let marked = -1;
  const mark = () => {
    bar.classList.toggle("away", window.scrollY > 60);
    const now = current();
    if (now === marked) return;
    links[marked]?.removeAttribute("aria-current");
    links[now]?.setAttribute("aria-current", "true");
    const list = links[0]?.closest("ol");
    if (links[now]) list.scrollLeft = links[now].offsetLeft - list.offsetLeft - 40;
    marked = now;
  };
  const page = (step) => {
    if (viewer.open) return get(step > 0 ? "viewer-next" : "viewer-back").click();
    const target = sections[current() + step];
    if (target) target.scrollIntoView();
    else if (step < 0) window.scrollTo({ top: 0 });
  };
  const keys = {
    ArrowRight: () => page(1),
    j: () => page(1),
    ArrowLeft: () => page(-1),
    k: () => page(-1),
    t: () => get("theme").click(),
    "?": () => (help.open ? help.close() : help.showModal()),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !Object.hasOwn(keys, event.key)) return;
    if (help.open && event.key !== "?") return;
    event.preventDefault();
    keys[event.key]();
  });
  get("help-button").addEventListener("click", () => help.showModal());
  window.addEventListener("scroll", mark, { passive: true });
  mark();
})();
