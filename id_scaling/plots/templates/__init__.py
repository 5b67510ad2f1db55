"""Pages as files of HTML, CSS and JavaScript; `$name` is a place that `id_scaling.plots.page` fills in."""
