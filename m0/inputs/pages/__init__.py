"""Files of pages: PDFs, TIFFs of several pages, zip archives of pictures. Each page is a document.

PDFium, which draws PDFs, serves one thread only and may crash on a broken file, so it works in processes of its own (`pool`, `worker`). They
import this package: it must bring neither PyTorch nor PDFium.
"""

from m0.inputs.pages.page import Page, PageInfo, PageLimits, Word
from m0.inputs.pages.ranges import parse_page_range
from m0.inputs.pages.reading import has_pages, open_pages, read_pages

__all__ = ["Page", "PageInfo", "PageLimits", "Word", "has_pages", "open_pages", "parse_page_range", "read_pages"]
