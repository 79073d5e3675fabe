"""Contact sheets: pictures with captions."""

import numpy as np

from media.contact_sheet import CAPTION_HEIGHT_PX, contact_sheet


def test_a_caption_that_is_wider_than_its_picture_is_shown_whole():
    caption = "candidate 5: different, not at the border"
    narrow, wide = (
        contact_sheet({caption: np.full((40, width), 255, np.uint8)}, height=40)[:CAPTION_HEIGHT_PX]
        for width in (40, 800)
    )
    assert narrow.shape[1] < wide.shape[1]
    text = wide[:, : narrow.shape[1]]
    np.testing.assert_array_equal(narrow, text)
    assert (wide[:, narrow.shape[1] :] == 255).all()  # Nothing of the text is missing in the narrow picture.
