"""The faults that a run survives, and the tests that prove it: the table of docs/reliability.md.

`make faults` runs the tests and counts.
"""

from tests.faults.hostile import HOSTILE
from tests.faults.row import Fault

FAULTS = (
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
            "checkpoint/test_checkpointer.py::"
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
            "checkpoint/test_checkpointer.py::test_a_missing_file_is_reported_with_the_step",
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
            "checkpoint/test_checkpointer.py::"
            "test_what_was_written_badly_is_found_at_once_and_never_outlives_the_good",
            "checkpoint/test_checkpointer.py::test_without_a_good_checkpoint_nothing_is_guessed",
            "checkpoint/test_checkpointer.py::test_a_read_that_fails_in_passing_condemns_nothing",
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
        "variables of the environment, and other users' caches",
        "works without, or one line, exit code 78",
        (
            "cli/test_all_commands.py::test_a_command_in_a_poor_environment",
            "cli/test_all_commands.py::test_a_platform_that_jax_does_not_know_is_one_line",
            "utils/test_compilation_cache.py::test_programs_of_another_user_are_not_run",
            "utils/test_compilation_cache.py::test_a_user_without_a_home_has_caches_that_end_with_the_process",
        ),
    ),
    Fault(
        "disk full",
        "a tmpfs of 8 MB, filled",
        "trains on and saves later; else 73, nothing lost",
        (
            "faults/test_writes.py::test_a_full_disk_doesnt_end_the_run",
            "faults/test_writes.py::test_a_disk_that_stays_full_ends_the_run",
        ),
    ),
    Fault(
        "logs or pictures can't be written",
        "folders in their place, a disk that is full",
        "one warning; the run goes on",
        (
            "train/test_metrics_log.py::test_tensorboard_that_cannot_be_written_costs_no_record",
            "train/test_metrics_log.py::"
            "test_a_log_that_cannot_be_written_at_the_end_hides_no_other_error",
            "train/test_metrics_log.py::"
            "test_examples_of_steps_that_were_not_finite_wait_until_they_can_be_written",
            "train/test_metrics_log.py::"
            "test_a_picture_that_cannot_be_written_is_warned_of_until_it_can",
            "train/test_metrics_log.py::test_pictures_that_cannot_be_written_end_no_run",
        ),
    ),
    Fault(
        "a save fails in the background",
        "an error from Orbax, or ENOSPC in it",
        "known at once, tried again, never success",
        (
            "checkpoint/test_checkpointer.py::"
            "test_a_save_that_fails_is_known_at_once_and_leaves_nothing",
            "train/test_refusals.py::test_a_checkpoint_that_fails_names_what_is_intact",
            "faults/test_writes.py::test_what_couldnt_be_saved_isnt_success",
            "train/test_resume.py::test_the_best_is_kept_when_the_last_save_fails_once",
        ),
        plain="a save fails in the background",
    ),
    Fault(
        "work directory can't be written",
        "no permission, a file in its place",
        "exit code 73 before anything is compiled",
        (
            "checkpoint/test_workdir.py::test_a_directory_that_cannot_be_written_is_refused",
            "train/test_refusals.py::test_a_workdir_that_cannot_be_written_is_refused_first",
        ),
    ),
    Fault(
        "two runs, one work directory",
        "processes at once; dead, hung and remote holders",
        "one has it, the other ends with 73",
        ("checkpoint/test_lock.py", "train/test_refusals.py::test_a_directory_in_use_is_refused"),
        plain="two processes, one folder",
    ),
    Fault(
        "loss or gradient isn't a number",
        "a poisoned batch",
        "never saved; `abort`, `skip` or `rollback`",
        (
            "faults/test_nonfinite.py",
            "train/test_refusals.py::test_what_is_not_finite_ends_the_run_and_is_never_saved",
        ),
        plain="a state with a NaN",
    ),
    Fault(
        "the run is of an older version",
        "runs that it stopped, kept in the repository",
        "read and gone on with, same logits",
        ("checkpoint/test_older_versions.py",),
    ),
    Fault(
        "resumed with another config",
        "model, optimiser, schedule, data",
        "refused with a diff, exit code 78",
        (
            "train/test_refusals.py::test_the_workdir_of_another_config_is_refused_with_a_diff",
            "config/test_schema.py::test_defaults_are_those_of_the_table_and_of_the_networks",
            "checkpoint/test_checkpointer.py::test_another_shape_is_refused",
        ),
        plain="other shapes are asked for",
    ),
    Fault(
        "wrong command line or config",
        "typos, wrong types, 2,000 mutations",
        "one line, exit code 64 or 78",
        (
            "cli/test_train_command.py::test_a_wrong_command_line_is_one_line",
            "cli/common/test_config_flag.py::test_a_file_that_makes_no_config_is_one_line",
            "cli/test_all_commands.py::test_a_number_that_is_none_is_refused",
            "faults/test_fuzz_config.py",
        ),
    ),
    Fault(
        "resumed on other devices and processes",
        "2×4, 4×1 and 1×2 processes × devices in turn",
        "same examples, same scores",
        (
            "train/test_jobs.py::"
            "test_a_job_stopped_and_resumed_on_other_numbers_of_processes_is_the_same_run",
            "checkpoint/test_checkpointer.py::"
            "test_a_state_of_eight_devices_is_restored_on_one_and_back",
        ),
    ),
    Fault(
        "one process of a job is killed or fails",
        "kill -9; an error",
        "all end within seconds, exit code 71",
        (
            "train/test_jobs.py::test_a_killed_process_ends_the_others_within_seconds",
            "parallel/job/test_monitor.py",
        ),
    ),
    Fault(
        "one process of a job is told to stop",
        "SIGTERM to one of two",
        "all save the same step, exit code 75",
        ("train/test_jobs.py::test_a_signal_to_one_process_stops_all_of_them_at_the_same_step",),
    ),
    Fault(
        "processes differ",
        "config, work directory, data, devices",
        "refused before the first step, the difference named",
        (
            "train/test_jobs.py::test_processes_that_differ_end_before_the_first_step",
            "train/test_jobs.py::test_different_numbers_of_devices_are_named",
            "parallel/job/test_rendezvous.py::test_processes_that_disagree_are_refused",
        ),
    ),
    Fault(
        "a process or the coordinator never comes",
        "left out; wrong port; port in use",
        "ends after the time-out, who is missing is named",
        (
            "parallel/job/test_rendezvous.py::test_missing_processes_are_named_to_all_that_are_there",
            "parallel/job/test_rendezvous.py::test_a_coordinator_that_never_comes_is_named",
            "parallel/job/test_rendezvous.py::test_a_port_in_use_is_named",
            "parallel/job/test_rendezvous.py::test_something_else_on_the_port_is_named",
            "parallel/job/test_rendezvous.py::test_a_stranger_on_the_coordinators_port_is_waited_for_no_longer",
        ),
    ),
    Fault(
        "nothing moves",
        "a process that sleeps, or hangs in its output",
        "stacks are written, exit code 71",
        (
            "train/test_watchdog.py",
            "faults/test_terminal.py::test_a_stuck_run_is_ended",
            "train/test_jobs.py::test_a_stopped_process_ends_the_others_in_time",
            "train/test_jobs.py::test_a_process_that_sleeps_for_ever_ends_all_in_time",
            "train/test_jobs.py::test_a_process_that_stands_still_for_two_minutes_costs_nothing",
            "faults/test_storage.py::test_storage_that_never_answers_ends_the_run_in_time",
        ),
    ),
    Fault(
        "labels out of range",
        "negative, too large, beyond 32 bits",
        "never trained on, the example named, exit code 65",
        (
            "data/test_datasets.py::test_label_out_of_range_is_named",
            "data/readers/test_skipped.py::test_a_wrong_label_is_named_by_its_place_before_skipping",
            "data/readers/test_skipped.py::test_a_label_beyond_32_bits_is_not_cut",
            "train/test_refusals.py::test_a_label_out_of_range_is_never_trained_on",
        ),
    ),
    Fault(
        "damaged, hostile or unusual images",
        "cut, bombs, other formats, 2,000 mutations",
        "the right image or one line",
        ("data/images/test_image_files.py", "faults/test_fuzz_images.py"),
    ),
    Fault(
        "damaged examples, to be skipped",
        "bits flipped in records and images",
        "left out, counted, listed; above 0.1 % it ends",
        ("data/readers/test_skipped.py",),
    ),
    Fault(
        "the data set changed since",
        "files added, removed, edited",
        "noticed when a run goes on",
        (
            "train/test_refusals.py::test_changed_data_are_noticed_when_a_run_goes_on",
            "data/readers/test_skipped.py::test_data_that_change_between_runs_are_noticed",
            "data/readers/test_skipped.py::test_a_file_removed_between_runs_is_noticed",
        ),
    ),
    Fault(
        "damaged data sets and records of a run",
        "2,000 mutations each",
        "typed errors, or what was written",
        ("faults/test_fuzz_datasets.py", "faults/test_fuzz_checkpoints.py"),
    ),
    Fault(
        "pickles and other weight files that lie",
        "payloads, headers, archives, 2,000 mutations",
        "refused, nothing runs",
        (
            "faults/test_weight_files.py",
            "weights/test_files.py::test_a_pickle_is_refused_with_the_command_that_converts_it",
            "cli/test_convert.py::test_a_plain_pickle_is_not_run",
        ),
    ),
    Fault(
        "a weight file is cut or replaced while it is read",
        "every length; meanwhile",
        "read whole or refused",
        (
            "weights/test_files.py::"
            "test_a_file_replaced_or_cut_while_it_is_read_is_read_whole_or_refused",
        ),
    ),
    Fault(
        "the record of a run is torn",
        "cut, lost and edited lines, other text",
        "mended, or named with its line",
        (
            "train/test_refusals.py::test_a_damaged_record_is_named_with_its_line",
            "train/test_metrics_log.py::test_a_damaged_line_is_named_and_what_is_wrong_with_it",
            "train/test_metrics_log.py::test_records_that_were_lost_are_noticed_when_a_run_goes_on",
            "faults/test_storage.py::test_a_damaged_summary_is_one_line",
            "faults/test_storage.py::test_a_damaged_summary_can_be_made_anew",
        ),
    ),
    Fault(
        "a bucket fails",
        "errors of its client, denied access, silence",
        "one line; nothing is condemned",
        (
            "train/test_bucket.py::test_a_client_that_fails_ends_the_run_with_one_line",
            "train/test_bucket.py::test_a_run_that_cannot_be_read_is_refused_with_one_line",
            "checkpoint/test_checkpointer.py::"
            "test_a_checkpoint_that_cannot_be_reached_is_left_alone",
        ),
    ),
    Fault(
        "storage is slow",
        "writes that sleep",
        "one save at a time, same bits",
        ("faults/test_storage.py::test_slow_storage_loses_and_reorders_nothing",),
    ),
    Fault(
        "the clock jumps",
        "a day back, ten years ahead",
        "order, lock and rates stay right",
        ("faults/test_clock.py",),
    ),
    Fault(
        "memory runs out",
        "a network of terabytes; RLIMIT_AS in mid-run",
        "one line, exit code 78, nothing lost",
        ("faults/test_memory.py",),
    ),
    Fault(
        "the compilation cache is damaged, closed or shared",
        "cut, flipped, read-only, two runs at once",
        "compiled again, same bits",
        ("faults/test_compile_cache.py",),
    ),
    Fault(
        "something is left behind",
        "after exit codes 70 and 75, and kill -9",
        "no process, lock, shared memory or temporary file",
        ("faults/test_orphans.py",),
    ),
    Fault(
        "a process that decodes images dies, or the run does",
        "kill -9 of either, SIGTERM",
        "named at once, exit code 71; none outlives the run",
        (
            "data/loaders/test_streaming.py::test_a_process_that_dies_is_noticed_at_once",
            "faults/test_orphans.py::test_processes_that_decode_images_end_with_the_run",
        ),
    ),
    Fault(
        "stopped within an epoch, decoded by other processes",
        "0, 1, 2 and 3 of them, on 1, 2 and 4 devices",
        "the same batches, the same bits",
        (
            "data/loaders/test_streaming.py::"
            "test_any_number_of_processes_and_any_first_step_give_the_same",
            "train/test_streaming.py::test_a_run_goes_on_in_the_middle_of_an_epoch",
            "train/test_jobs.py::test_a_job_decodes_on_each_host_what_its_devices_need",
        ),
    ),
    Fault(
        "a preparation of data is killed, or decays",
        "kill -9; a byte of a finished file changes",
        "the same command goes on, same bytes",
        (
            "data/prepare/test_prepare.py::test_killed_at_any_time_it_goes_on_and_writes_the_same",
            "data/prepare/test_prepare.py::test_a_shard_that_has_decayed_is_written_again",
        ),
    ),
    Fault(
        "odd sizes",
        "batches of one, classes without examples",
        "every image counts once",
        ("faults/test_sizes.py",),
    ),
    *HOSTILE,
)
