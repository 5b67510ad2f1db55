"""Templates of pages in HTML, CSS, and JavaScript; `id_scaling.plots.page` fills each placeholder `$name`."""
