"""Pictures of objects: size, masks, and where labels go."""

import numpy as np
import pytest

from visionssm.openmmlab.object_pictures import draw_objects, enlarge, enlargement, free_place


@pytest.mark.parametrize(
    "size, factor", [((47, 61), 8), ((96, 160), 6), ((300, 333), 3), ((480, 640), 2), ((800, 1333), 1)]
)
def test_small_images_are_enlarged(size, factor):
    assert enlargement(*size) == factor
    assert enlarge(np.zeros((*size, 3), np.uint8), factor).shape == (factor * size[0], factor * size[1], 3)


def test_labels_do_not_cover_each_other():
    rng = np.random.default_rng(0)
    size, text, taken = (400, 300), (0, 0, 60, 14), []
    for left, top in rng.uniform(0, 250, (25, 2)).tolist() + 5 * [[10.0, 10.0]]:
        place = free_place((left, top, left + 40, top + 40), text, size, taken)
        assert 0 <= place[0] and place[2] <= size[0] and 0 <= place[1] and place[3] <= size[1]
        for other in taken:
            assert place[0] >= other[2] or other[0] >= place[2] or place[1] >= other[3] or other[1] >= place[3]
        taken.append(place)
    assert free_place((100, 100, 140, 140), text, size, [])[:2] == (100, 100 - 18), "above its box where that is free"


def test_boxes_and_masks_are_drawn():
    masks = np.zeros((1, 200, 300), bool)
    masks[0, 60:120, 50:150] = True
    box = np.array([[50.0, 60, 149, 119]])
    drawn = draw_objects(np.zeros((200, 300, 3), np.uint8), box, ["7"], [(250, 10, 20)], masks)
    assert tuple(drawn[90, 100]) == (100, 4, 8), "the mask shines through"
    assert tuple(drawn[60, 100]) == tuple(drawn[119, 149]) == (250, 10, 20), "the box"
    assert not drawn[150:].any() and drawn[45:58, 50:60].any(), "the label stands above"
