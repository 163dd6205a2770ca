"""Prompts that encoders are recorded with, and those that they are compared on."""

from svdquant_pack.svdq_core.quantize.prompts import HELD_OUT, RECORDED, split_prompts


def test_recorded_and_held_out_are_apart():
    assert len(set(RECORDED)) == len(RECORDED) == 40 and len(set(HELD_OUT)) == len(HELD_OUT) == 8
    assert not set(RECORDED) & set(HELD_OUT)


def test_prompts_of_the_users_own():
    assert split_prompts("  a fox \n\n a  dog\n") == ("a fox", "a  dog")
    assert split_prompts(" \n ") == RECORDED
