"""Faults of a run: its storage, its numbers, its config, and the processes of its job."""

from tests.faults.row import Fault

RUN_FAULTS = (
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
        (
            "checkpoint/test_lock.py",
            "checkpoint/test_lock_file.py",
            "train/test_refusals.py::test_a_directory_in_use_is_refused",
        ),
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
            "checkpoint/test_reader.py::test_another_shape_is_refused",
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
)
