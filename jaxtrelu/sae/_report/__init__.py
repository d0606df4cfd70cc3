"""A model to look at in a browser: one HTML file, with all data inside and no network.

The page is `page.html` with `page.css` and `page.js` put in; `_collect` makes the figures that it
shows, `_page` the file.
"""
