"""Which pages are meant."""

import pytest

from m0.errors import InputError
from m0.inputs.pages import parse_page_range


@pytest.mark.parametrize(
    ("pages", "numbers"),
    [
        (None, [1, 2, 3, 4, 5, 6, 7]),
        ("1-3,7", [1, 2, 3, 7]),
        (" 2 - 3 , 1 ", [2, 3, 1]),
        ("6-", [6, 7]),
        ("4", [4]),
        ("2-2", [2]),
        (4, [4]),
        ([7, 1, 1], [7, 1, 1]),
        (range(1, 4), [1, 2, 3]),
    ],
)
def test_ranges(pages, numbers):
    assert parse_page_range(pages, 7) == numbers


@pytest.mark.parametrize(
    ("pages", "sentence"),
    [
        ("", "the pages '' cannot be read: give numbers from 1 and ranges, such as '1-3,7' or '5-'."),
        ("a", "the pages 'a' cannot be read"),
        ("-3", "the pages '-3' cannot be read"),
        ("1,,2", "the pages '1,,2' cannot be read"),
        ("1.5", "the pages '1.5' cannot be read"),
        ("5-2", "the pages '5-2' run backwards; give the smaller number first."),
        ("0-2", "a page is given as 0, but pages count from 1."),
        ("6-9", "page 9 was asked for, but there are 7 pages."),
        ("999999999", "page 999999999 was asked for, but there are 7 pages."),
        ("9999999999", "cannot be read"),
        (8, "page 8 was asked for, but there are 7 pages."),
        ([], "pages is an empty list."),
        ([1, "2"], "a page is given as '2', but must be a whole number from 1."),
        (True, "a page is given as True"),
        (1.5, "pages is float, but must be numbers from 1 and ranges"),
        (range(1, 10**12), "page 8 was asked for"),
    ],
)
def test_what_is_no_range(pages, sentence):
    with pytest.raises(InputError) as caught:
        parse_page_range(pages, 7)
    assert sentence in str(caught.value)


def test_one_page_is_one():
    with pytest.raises(InputError, match="but there is 1 page"):
        parse_page_range("2", 1)
