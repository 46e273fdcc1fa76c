from srfa.options import Common


def test_the_processes_of_a_call_are_the_workers_of_its_search():
    assert Common(jobs=3).fit_config(None).n_workers == 3


def test_a_file_s_workers_stand_where_the_call_names_no_processes(tmp_path):
    path = tmp_path / "fit.yaml"
    path.write_text("n_workers: 2\nseed: 5\n")
    config = Common().fit_config(path)
    assert (config.n_workers, config.seed) == (2, 5)
    assert Common(jobs=4, seed=7).fit_config(path).n_workers == 4


def test_a_seed_of_0_goes_before_the_file_s(tmp_path):
    path = tmp_path / "fit.yaml"
    path.write_text("seed: 5\n")
    assert Common(seed=0).fit_config(path).seed == 0
