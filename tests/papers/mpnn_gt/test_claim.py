import torch

from everyformer.catalog import Job
from everyformer.papers.mpnn_gt import claim, study


def test_the_constructions_keep_to_their_bounds(tmp_path):
    assert claim.construction(Job("smoke", 1, "cpu", tmp_path)).method <= 1e-6
    assert claim.softmax_depth(Job("smoke", 1, "cpu", tmp_path)).method <= 1


def test_a_finished_search_is_read_back_and_gives_the_same_score(tmp_path):
    job = Job("smoke", 0, "cpu", tmp_path)
    task = claim.sum_task(job)
    first = study.search(job, "sum", study.VIRTUAL, task)
    assert study.search(job, "sum", study.VIRTUAL, task) == first


def test_timing_puts_the_number_of_threads_back(tmp_path):
    before = torch.get_num_threads()
    claim.linear_time(Job("smoke", 0, "cpu", tmp_path))
    assert torch.get_num_threads() == before
