"""Faults of a process: kills, signals, terminals, and a checkpoint that a kill damages."""

from tests.faults.row import Fault

PROCESS_FAULTS = (
    Fault(
        "kill -9 at a random time",
        "a signal from outside, again and again",
        "resumed run has the same bits",
        ("faults/test_kills.py::test_kills_at_random_times_lose_nothing",),
        plain="kill -9",
    ),
    Fault(
        "kill -9 at a change of a file",
        "an audit hook",
        "resumed run has the same bits, no remains",
        (
            "faults/test_kills.py::test_a_kill_at_a_change_of_a_file_loses_nothing",
            "faults/test_kills.py::test_a_kill_at_any_change_of_a_file_loses_nothing",
        ),
    ),
    Fault(
        "killed after any step, record torn",
        "files as a kill leaves them",
        "same bits, same record",
        ("train/test_resume.py::test_resuming_after_a_kill_equals_the_uninterrupted_run",),
    ),
    Fault(
        "one bit of a checkpoint flips",
        "in the file, in NumPy's arrays",
        "found, set aside, the one before is used",
        (
            "checkpoint/test_corruption.py::"
            "test_a_flipped_bit_is_never_restored_and_the_checkpoint_kept",
            "checkpoint/test_integrity.py::test_any_flipped_bit_is_seen",
            "train/test_resume.py::test_a_damaged_checkpoint_is_stepped_over",
        ),
        plain="one bit flips",
    ),
    Fault(
        "a checkpoint lacks a file or a part of one",
        "removed, cut",
        "found, set aside, the one before is used",
        (
            "checkpoint/test_reader.py::test_a_missing_file_is_reported_with_the_step",
            "train/test_jobs.py::"
            "test_a_damaged_part_that_one_process_alone_reads_is_set_aside_by_all",
            "faults/test_storage.py::test_any_file_of_a_checkpoint_may_be_lost",
            "faults/test_storage.py::test_damaged_scores_cost_no_checkpoint_but_their_own",
        ),
        plain="a file is cut",
    ),
    Fault(
        "all newer checkpoints are bad",
        "damage, in turn",
        "the last good one is never deleted",
        (
            "checkpoint/test_corruption.py::"
            "test_what_was_written_badly_is_found_at_once_and_never_outlives_the_good",
            "checkpoint/test_corruption.py::test_without_a_good_checkpoint_nothing_is_guessed",
            "checkpoint/test_corruption.py::test_a_read_that_fails_in_passing_condemns_nothing",
        ),
    ),
    Fault(
        "SIGTERM while it trains, scores or saves, twice",
        "at the call of a function; from outside",
        "saved, exit code 75, same bits later",
        (
            "faults/test_signals.py::test_a_signal_loses_nothing",
            "faults/test_signals.py::test_a_second_signal_changes_nothing",
        ),
        plain="SIGTERM",
    ),
    Fault(
        "SIGINT, SIGHUP, SIGTERM",
        "from outside, while it trains",
        "saved, exit code 75",
        ("faults/test_signals.py::test_any_signal_to_stop_saves",),
    ),
    Fault(
        "signals after the end, or hundreds of them",
        "while the interpreter shuts down; every 2 ms",
        "the exit code says how the run ended",
        (
            "faults/test_signals.py::"
            "test_signals_after_the_end_of_a_run_do_not_change_its_exit_code",
            "faults/test_signals.py::test_a_storm_of_signals_loses_nothing",
            "faults/test_signals.py::"
            "test_a_storm_of_signals_ends_a_reproduction_as_one_signal_does",
            "faults/test_signals.py::test_a_storm_of_signals_ends_a_sweep_as_one_signal_does",
        ),
    ),
    Fault(
        "a reproduction or a sweep is told to stop",
        "SIGINT, SIGTERM, between runs and within one",
        "exit code 75, no stopped run counts as trained",
        (
            "research/test_runner.py::test_a_run_that_is_stopped_is_not_counted_as_trained",
            "faults/test_signals.py::test_a_reproduction_that_computes_ends_within_seconds",
            "faults/test_signals.py::test_a_reproduction_that_trains_saves_first",
            "research/test_sweep.py::test_a_stop_is_passed_on_and_nothing_begins_after_it",
            "research/test_sweep.py::test_a_run_that_a_terminal_interrupts_as_well_has_not_failed",
            "research/test_sweep.py::"
            "test_a_process_whose_sweep_was_killed_before_it_began_trains_nothing",
        ),
    ),
    Fault(
        "SIGTERM during compilation",
        "from outside, a network of 111 layers",
        "ends within seconds, exit code 75",
        ("faults/test_signals.py::test_a_signal_while_compiling_ends_the_run_within_seconds",),
    ),
    Fault(
        "a signal before the first step, at any place",
        "in the garbage collector, a library, a config file without end",
        "ends at once, exit code 75, claims no checkpoint",
        (
            "faults/test_signals.py::test_before_the_first_step_nothing_swallows_a_signal",
            "faults/test_signals.py::test_a_config_file_that_never_returns_is_interrupted",
            "faults/test_signals.py::"
            "test_a_run_that_stops_before_the_first_step_claims_no_checkpoint",
        ),
    ),
    Fault(
        "terminal, reader or log is gone",
        "closed, full, halted",
        "trains on, exit code stays right",
        ("faults/test_terminal.py",),
    ),
    Fault(
        "the output of a command can't be written",
        "every subcommand: full, closed, in ASCII, no reader",
        "73 where it is lost; a reader may end early",
        (
            "cli/test_all_commands.py::"
            "test_output_that_cannot_be_written_is_an_error_unless_nobody_reads_it",
            "cli/test_all_commands.py::test_a_stream_of_ascii_gets_escapes",
            "cli/test_all_commands.py::test_messages_that_cannot_be_written_change_no_exit_code",
            "cli/test_all_commands.py::test_the_end_of_the_process_changes_nothing_either",
        ),
    ),
    Fault(
        "no home, no such platform, a dumb terminal",
        "variables of the environment, and other users' files",
        "works without, or one line, exit code 78",
        (
            "cli/test_all_commands.py::test_a_command_in_a_poor_environment",
            "cli/test_all_commands.py::test_a_platform_that_jax_does_not_know_is_one_line",
            "utils/test_compilation_cache.py::test_programs_of_another_user_are_not_run",
            "utils/test_compilation_cache.py::test_a_user_without_a_home_has_caches_that_end_with_the_process",
            "utils/test_files.py::test_a_home_that_nobody_knows_is_left_as_it_is",
            "data/readers/test_tfds.py::test_a_user_without_a_name_and_a_home_names_the_folder",
            "logging/test_status.py::test_files_of_a_user_without_a_name_have_ages_too",
        ),
    ),
)
