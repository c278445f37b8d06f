"""The report card: `evaluate` judges `candidates` by `looks` at their images, and `report_card` puts it on a page."""
