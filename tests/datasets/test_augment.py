"""ShiftFlip: right pixels, and a draw that depends on seed, epoch and sample alone."""

import pytest
import torch

from kdx.datasets import ShiftFlip


def test_each_view_is_a_shifted_and_perhaps_mirrored_image():
    images = torch.rand(200, 2, 6, 7) + 1
    views = ShiftFlip(shift=2, flip=0.5, fill=0.0)(images, torch.arange(200), epoch=1)
    canvas = torch.zeros(200, 2, 10, 11)
    canvas[:, :, 2:8, 2:9] = images
    mirrored = torch.zeros(200, 2, 10, 11)
    mirrored[:, :, 2:8, 2:9] = images.flip(3)
    seen = set()
    for k in range(200):
        found = [
            (flip, top, left)
            for flip, source in ((False, canvas), (True, mirrored))
            for top in range(5)
            for left in range(5)
            if torch.equal(views[k], source[k, :, top : top + 6, left : left + 7])
        ]
        assert len(found) == 1
        seen.add(found[0])
    assert len(seen) > 45  # of 50 possible ones; 200 draws miss at most a few


def test_draws_areuniform_and_flips_have_their_probability():
    size = 20_000
    images = torch.zeros(size, 1, 5, 5)
    images[:, :, 2, 2] = 1.0  # a single point in the middle: its place is the shift
    views = ShiftFlip(shift=2, flip=0.0)(images, torch.arange(size), epoch=0)
    counts = views.sum(0)[0]
    chi2 = ((counts - size / 25) ** 2 / (size / 25)).sum()
    assert counts.sum() == size
    assert chi2 < 51.2  # 99.9 % point of chi-square with 24 degrees of freedom

    images = torch.zeros(size, 1, 5, 5)
    images[:, :, 2, 0] = 1.0
    flipped = ShiftFlip(shift=0, flip=0.3)(images, torch.arange(size), epoch=0)[:, 0, 2, 4].mean()
    assert abs(float(flipped) - 0.3) < 0.013  # 4 standard errors


def test_a_view_does_not_depend_on_the_batch_it_is_in():
    images, index = torch.rand(64, 1, 28, 28), torch.randperm(5000)[:64]
    augment = ShiftFlip(seed=3)
    views = augment(images, index, epoch=7)
    order = torch.randperm(64)
    assert torch.equal(augment(images[order], index[order], epoch=7), views[order])
    assert torch.equal(ShiftFlip(seed=3)(images[:1], index[:1], epoch=7), views[:1])


def test_epoch_seed_and_index_each_change_the_views():
    images, index = torch.rand(64, 1, 28, 28), torch.arange(64)
    views = ShiftFlip(seed=3)(images, index, epoch=7)
    for other in (
        ShiftFlip(seed=4)(images, index, epoch=7),
        ShiftFlip(seed=3)(images, index, epoch=8),
        ShiftFlip(seed=7)(images, index, epoch=3),
        ShiftFlip(seed=3)(images, index + 1, epoch=7),
    ):
        same = (other == views).flatten(1).all(1).float().mean()
        assert same < 0.2  # 1 in 50 by chance


def test_no_random_state_is_touched_and_the_images_stay():
    images = torch.rand(8, 1, 28, 28)
    before, state = images.clone(), torch.get_rng_state()
    ShiftFlip()(images, torch.arange(8), epoch=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(images, before)


def test_pixels_that_move_in_are_the_background_of_the_image():
    images = torch.rand(100, 1, 4, 4)
    views = ShiftFlip(shift=3)(images, torch.arange(100))
    assert torch.equal(views.amin((1, 2, 3)), images.amin((1, 2, 3)))
    assert not torch.equal(views, images)


def test_gradients_and_half_precision_pass():
    images = torch.rand(4, 1, 6, 6, dtype=torch.bfloat16, requires_grad=True)
    views = ShiftFlip(shift=0)(images, torch.arange(4))
    views.sum().backward()
    assert views.dtype == torch.bfloat16
    assert torch.equal(images.grad, torch.ones_like(images))


def test_the_draw_of_a_key_stays_what_it_is():
    # Golden numbers, from an implementation with Python integers: views are part of what "the same run" means.
    from kdx.datasets.augment import uniform

    def mix(x):
        x = (x + 0x9E3779B97F4A7C15) % 2**64
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
        return x ^ (x >> 31)

    seed, epoch = 12, 34
    for index in (0, 1, 4999):
        key = mix(mix(mix(seed) ^ epoch) ^ index)
        expected = [(mix((key + k * 0x9E3779B97F4A7C15) % 2**64) >> 11) / 2**53 for k in (1, 2, 3)]
        assert uniform(seed, epoch, torch.tensor([index]), count=3)[0].tolist() == expected


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ShiftFlip(shift=-1), "shift.*got -1"),
        (lambda: ShiftFlip(flip=2.0), "flip.*got 2.0"),
        (lambda: ShiftFlip()(torch.rand(1, 28, 28), torch.arange(1)), r"images must be \[B, C, H, W\].*\[1, 28, 28\]"),
        (lambda: ShiftFlip()(torch.rand(2, 1, 8, 8), torch.arange(3)), r"index \[B\].*\[3\]"),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()
