"""What the site is made with, beside the pages in ``docs``: ``make docs``."""
