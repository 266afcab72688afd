"""The report: one HTML file, and the images of data sets that it shows."""
