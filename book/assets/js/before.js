// Runs before every other script of the page.
// FontAwesome would replace the widgets' icons as they appear, and break them.
window.FontAwesomeConfig = { observeMutations: false };
// A slider with a description asks for version 2 of MathJax; version 3 answers.
document.addEventListener("DOMContentLoaded", () => {
  if (!window.MathJax) return;
  window.MathJax.Hub = { Queue: ([, , node]) => window.MathJax.typesetPromise?.([node]) };
});
