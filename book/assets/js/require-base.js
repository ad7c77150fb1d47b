// Widgets' modules lie beside this page's other files, so that nothing is asked of another host.
requirejs.config({ baseUrl: `${document.documentElement.dataset.content_root ?? "./"}_static/vendor` });
