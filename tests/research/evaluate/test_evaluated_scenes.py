"""What is drawn: held-out captions, a hard set, and noise that depends on the caption's number alone."""

import torch

from svdquant_pack.research.evaluate.evaluated_scenes import calibration_scenes, evaluated_scenes

CPU = torch.device("cpu")


def test_usual_and_hard_captions_are_held_out():
    scenes = evaluated_scenes(12, 5, CPU)
    assert scenes.is_hard.tolist() == [False] * 12 + [True] * 5
    assert bool(scenes.captions.is_held_out.all())
    assert bool(scenes.captions[scenes.is_hard].is_difficult.all())
    assert len(scenes) == len(scenes.context) == len(scenes.pooled) == len(scenes.noise) == 17


def test_calibration_sees_none_of_them():
    calibration = calibration_scenes(30, CPU)
    assert not bool(calibration.captions.is_held_out.any())
    assert not set(calibration.captions.texts()) & set(evaluated_scenes(30, 0, CPU).captions.texts())


def test_noise_does_not_depend_on_the_number_of_captions():
    few, many = evaluated_scenes(3, 0, CPU), evaluated_scenes(6, 2, CPU)
    assert torch.equal(few.noise, many.noise[:3])
    assert not torch.equal(many.noise[0], many.noise[1]) and not torch.equal(many.noise, many.other_noise)


def test_some_of_the_scenes():
    scenes = evaluated_scenes(3, 1, CPU)
    hard = scenes.where(scenes.is_hard)
    assert len(hard) == 1 and torch.equal(hard.noise[0], scenes.noise[3])
    assert hard.captions.texts() == scenes.captions.texts()[3:]


def test_replicates_have_captions_and_noise_of_their_own():
    first, second = calibration_scenes(4, CPU), calibration_scenes(4, CPU, replicate=1)
    assert torch.equal(first.noise, calibration_scenes(4, CPU, 0).noise)
    assert not set(first.captions.texts()) & set(second.captions.texts())
    assert not torch.equal(first.noise, second.noise)
