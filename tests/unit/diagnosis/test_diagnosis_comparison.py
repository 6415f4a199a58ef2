"""Who differs from the majority, and who is slow: pure functions with made-up nodes."""

import pytest

from megatron_focus.diagnosis.comparison import compare, differing, speed_can_be_measured
from megatron_focus.diagnosis.pairing import shifts
from megatron_focus.diagnosis.rank_facts import RankFacts, software
from megatron_focus.diagnosis.speed import Speeds
from megatron_focus.diagnosis.stragglers import judge_speeds, slow_network
from megatron_focus.diagnosis.verdict import Verdict, ranges
from megatron_focus.diagnosis.watchdog import describe_hang


def job(nodes=4, per_node=2):
    """Facts of a job in order."""
    facts = []
    for rank in range(nodes * per_node):
        node, local = f"n{rank // per_node}", rank % per_node
        same = {
            "device": "cuda",
            "torch": "2.13.0",
            "NCCL": "2.27",
            "driver": "550",
            "megatron-core": "0.19",
            "$NCCL_DEBUG": "WARN",
        }
        if local == 0:
            same["data.path"] = "abc"
        facts.append(RankFacts(node, rank, local, same=same, gpu={"uuid": f"u{local}", "name": "A100", "GiB": "80"}))
    return facts


def test_equal_nodes():
    assert compare(job()).line() == ""
    assert speed_can_be_measured(job())


def test_a_node_with_another_driver():
    """Clusters are upgraded node by node."""
    facts = job()
    for rank in (4, 5):
        facts[rank].same["driver"] = "535"
    verdict = compare(facts)
    assert (verdict.problems, verdict.warnings) == ({}, {"n2": ["driver is 535, elsewhere 550"]})
    assert speed_can_be_measured(facts)


def test_one_rank_of_a_node():
    facts = job()
    facts[3].same["torch"] = "2.12.0"
    assert compare(facts).problems == {"n1": ["torch is 2.12.0 (rank 3), elsewhere 2.13.0"]}
    assert not speed_can_be_measured(facts)


def test_without_a_majority_all_are_named():
    verdict = compare([*job(nodes=2)[:2], RankFacts("n1", 2, 0, same=job()[2].same | {"NCCL": "2.21"})])
    assert verdict.problems["n1"][0] == "NCCL is 2.21, elsewhere 2.27"
    tied = differing("driver", {0: "535", 1: "550"}, {0: "n0", 1: "n1"})
    assert tied == {
        "n0": "driver is 535 and not the same on all nodes",
        "n1": "driver is 550 and not the same on all nodes",
    }


def test_a_variable_that_one_node_lacks_and_interfaces_that_may_differ():
    facts = job()
    for rank in (0, 1):
        del facts[rank].same["$NCCL_DEBUG"]
        facts[rank].same["$NCCL_SOCKET_IFNAME"] = "eth1"
    verdict = compare(facts)
    assert verdict.problems == {"n0": ["$NCCL_DEBUG is not set, elsewhere WARN"]}
    assert verdict.warnings == {"n0": ["$NCCL_SOCKET_IFNAME is eth1, elsewhere not set"]}


@pytest.mark.parametrize("name", ["NCCL_DEBUG_FILE", "NCCL_TOPO_FILE", "TORCH_EXTENSIONS_DIR", "NCCL_HOSTID"])
def test_variables_that_name_something_of_the_node(name):
    facts = job()
    for rank in (2, 3):
        facts[rank].same[f"${name}"] = "/local/n1"
    verdict = compare(facts)
    assert verdict.problems == {}
    assert verdict.warnings == {"n1": [f"${name} is /local/n1, elsewhere not set"]}


def test_a_rank_without_a_gpu_where_the_others_have_one():
    facts = job()
    facts[5].gpu = {}
    assert not speed_can_be_measured(facts)
    for rank in facts:
        rank.gpu = {}
        rank.same["device"] = "cpu"
    assert speed_can_be_measured(facts)


def test_files_on_one_node_and_on_all():
    facts = job()
    facts[6].files = ["data.path: gone"]
    del facts[6].same["data.path"]
    verdict = compare(facts)
    assert (verdict.problems, verdict.everywhere) == ({"n3": ["data.path: gone"]}, [])
    for rank in facts:
        rank.files = ["data.path: gone"]
    verdict = compare(facts)
    assert (verdict.problems, verdict.everywhere) == ({}, ["data.path: gone"])
    assert verdict.line() == "all nodes: data.path: gone"


def test_storage_that_does_not_answer_is_not_the_configurations_fault():
    facts = job()
    for rank in facts:
        rank.storage = ["data.path: connection refused"]
    verdict = compare(facts)
    assert (verdict.problems, verdict.everywhere) == ({"": ["all nodes: data.path: connection refused"]}, [])
    assert verdict.line() == "all nodes: data.path: connection refused"


def test_nodes_with_the_same_trouble_are_named_together():
    facts = job(nodes=8)
    for rank in (4, 5, 6, 7):
        facts[rank].same["megatron-core"] = "0.15"
    assert compare(facts).line() == "n2, n3: megatron-core is 0.15, elsewhere 0.19"


def test_processes_and_shared_gpus():
    facts = job()[:-1]
    facts[1].gpu["uuid"] = facts[0].gpu["uuid"]
    assert compare(facts).problems == {"n0": ["ranks 0-1 use the same GPU"], "n3": ["1 processes, elsewhere 2"]}
    assert not speed_can_be_measured(facts)


def test_environment_that_matters():
    environment = {"NCCL_IB_HCA": "mlx5", "HOME": "/h", "AWS_SECRET": "x", "CUDA_DEVICE_MAX_CONNECTIONS": "1"}
    said = {key for key in software(environment) if key.startswith("$")}
    assert said == {"$NCCL_IB_HCA", "$CUDA_DEVICE_MAX_CONNECTIONS"}


@pytest.mark.parametrize("count", [3, 4, 5, 8, 9])
def test_every_node_has_two_partners_and_one_at_a_time(count):
    nodes = [f"n{i}" for i in range(count)]
    rounds = shifts(nodes)
    for pairs in rounds:
        busy = [node for pair in pairs for node in pair]
        assert len(busy) == len(set(busy))
    partners = {n: {a if b == n else b for pairs in rounds for a, b in pairs if n in (a, b)} for n in nodes}
    assert all(len(found) == 2 for found in partners.values())
    assert shifts(nodes[:2]) == []


def measured(count, slow_nodes=(), slow_links=(), tflops=None):
    """Speeds of one rank a node: links of 100 GB/s, 10 where a slow node or link takes part."""
    nodes = [f"n{i}" for i in range(count)]
    speeds = [Speeds(tflops=(tflops or {}).get(node, 250.0), whole=90.0) for node in nodes]
    for first, second in (pair for pairs in shifts(nodes) for pair in pairs):
        is_slow = first in slow_nodes or second in slow_nodes or {first, second} in slow_links
        for node, partner in ((first, second), (second, first)):
            speeds[int(node[1:])].pairs[partner] = 10.0 if is_slow else 100.0
    return nodes, speeds


def judged(nodes, speeds, share=0.7, bandwidth=None):
    verdict = Verdict()
    judge_speeds(verdict, nodes, speeds, share, bandwidth)
    return verdict.problems


def warned(nodes, speeds, share=0.7):
    verdict = Verdict()
    judge_speeds(verdict, nodes, speeds, share, None)
    assert verdict.problems == {}
    return verdict.warnings


@pytest.mark.parametrize("count", [3, 4, 5, 8])
def test_the_node_that_is_slow_with_both_partners_is_named(count):
    assert judged(*measured(count)) == {}
    assert judged(*measured(count, slow_nodes={"n2"})).keys() == {"n2"}


def test_two_slow_neighbours():
    assert judged(*measured(8, slow_nodes={"n2", "n3"})).keys() == {"n2", "n3"}


def test_a_slow_link_is_a_warning_of_both_ends():
    """Two halves of a healthy cluster, with an oversubscribed switch between them."""
    found = warned(*measured(8, slow_links=[{"n3", "n4"}, {"n7", "n0"}]))
    assert found.keys() == {"n0", "n3", "n4", "n7"}
    assert found["n3"] == ["link with n4 10.00 GB/s, at least 70.00 expected"]
    assert found["n4"] == ["link with n3 10.00 GB/s, at least 70.00 expected"]


@pytest.mark.parametrize("share", [0.7, None])
def test_a_slow_link_is_a_problem_where_a_bandwidth_was_asked_for(share):
    job_with_link = measured(8, slow_links=[{"n2", "n3"}])
    assert judged(*job_with_link, share=share, bandwidth=5.0) == {}
    assert judged(*job_with_link, share=share, bandwidth=20.0).keys() == {"n2", "n3"}


def test_a_slow_gpu():
    found = judged(*measured(4, tflops={"n1": 100.0}))
    assert found == {"n1": ["rank 1 computes 100.00 TFLOP/s, 40% of the median"]}


def test_a_slow_node_within():
    nodes = ["a", "a", "b", "b", "c", "c"]
    speeds = [Speeds(tflops=1.0, within=20.0 if rank == 3 else 200.0) for rank in range(6)]
    assert judged(nodes, speeds) == {"b": ["all-reduce within the node 20.00 GB/s, 10% of the median"]}


def test_a_network_that_is_slow_everywhere():
    nodes, speeds = measured(4)
    assert slow_network(nodes, speeds) is None
    speeds[2].whole = 1.5
    assert "all-reduce of the whole job 1.50 GB/s: does NCCL use InfiniBand" in slow_network(nodes, speeds)
    assert slow_network(["n0"] * 4, speeds) is None, "one node has no network"


def test_absolute_bandwidth():
    nodes, speeds = measured(4)
    assert judged(nodes, speeds, None, 95.0) == {"": ["all-reduce of the whole job 90.00 GB/s, at least 95 wanted"]}
    assert judged(nodes, speeds, 0.7, 120.0).keys() == {"", *nodes}
    assert judged(*measured(4, slow_nodes={"n1"}), share=None) == {}  # nothing was asked for


def test_who_holds_up_the_others():
    nodes = ["n0", "n0", "n1", "n1", "n2"]
    assert describe_hang({0: "b", 1: "b", 2: "a", 3: "a", 4: "b"}, nodes) == "n1: rank 2-3 in: a; the others in: b"
    assert describe_hang({0: "b", 1: "b"}, nodes) == "all ranks wait in: b"


def test_runs_of_numbers():
    assert ranges([7, 0, 1, 2, 5]) == "0-2, 5, 7"
