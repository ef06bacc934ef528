// Light, dark, or as the system has it.
(() => {
  "use strict";
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const order = ["system", "light", "dark"];
  let current = "system";
  const show = (theme) => {
    current = order.includes(theme) ? theme : "system";
    if (current === "system") root.removeAttribute("data-theme");
    else root.dataset.theme = current;
    const said = current === "system" ? "as the system has them" : current;
    button.setAttribute("aria-label", `Colours: ${said}`);
    button.title = `Colours: ${said} (t)`;
  };
  // a page from disk may be refused a memory: then the choice lasts as long as the page
  const memory = (act) => { try { return act(window.localStorage); } catch { return null; } };
  show(memory((store) => store.getItem("page-theme")));
  button.addEventListener("click", () => {
    show(order[(order.indexOf(current) + 1) % order.length]);
    memory((store) => store.setItem("page-theme", current));
  });
})();
