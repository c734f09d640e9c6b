"""Faults that someone brings about on purpose, and those of unusual surroundings."""

from tests.faults.row import Fault

HOSTILE = (
    Fault(
        "a prepared data set names code, or files elsewhere",
        "features, paths, numbers, pipes in its metadata",
        "refused, nothing runs",
        ("data/readers/test_tfds_metadata.py",),
    ),
    Fault(
        "objects in a bucket, or links in the cache, lead elsewhere",
        "names with .., absolute, with control characters",
        "refused, nothing is written",
        (
            "data/test_remote_cache.py::test_no_object_leaves_the_copy",
            "data/test_remote_cache.py::test_links_in_the_cache_are_not_followed",
        ),
    ),
    Fault(
        "files that promise more than there is",
        "sparse images, archives and records, terabytes in a header",
        "refused within seconds",
        (
            "data/readers/test_folders.py::test_a_file_that_is_no_image_by_its_size_isnt_read",
            "data/prepare/test_prepare.py::test_an_archive_is_not_larger_than_it_is",
            "data/prepare/test_prepare.py::test_a_part_of_an_archive_that_no_image_has_isnt_read",
            "faults/test_storage.py::test_a_file_of_a_run_of_terabytes_is_an_error",
            "faults/test_storage.py::test_a_lock_of_terabytes_is_that_of_an_unknown_process",
        ),
    ),
    Fault(
        "code of the user's ends the process",
        "sys.exit in a config, an extension, a loss, a callback",
        "one line, never exit code 0",
        (
            "cli/common/test_config_flag.py::test_a_file_that_makes_no_config_is_one_line",
            "cli/test_all_commands.py::test_what_ends_a_command_is_one_line_and_an_exit_code",
            "config/test_extensions.py::test_what_cannot_be_imported_is_said_in_a_line",
            "faults/test_terminal.py::test_a_failure_keeps_its_exit_code_and_waits_for_no_thread",
            "train/test_callbacks.py::test_a_callback_cannot_end_the_process",
        ),
    ),
    Fault(
        "other users look into a run",
        "a umask of 077",
        "no file is theirs to read",
        (
            "utils/test_files.py::test_the_users_umask_says_who_may_read_a_file",
            "faults/test_storage.py::test_files_of_a_run_are_as_private_as_its_umask",
        ),
    ),
    Fault(
        "strangers on a job's port",
        "silent crowds, hostile lines, numbers without end",
        "ignored, or one line",
        (
            "parallel/job/test_rendezvous.py::test_strangers_on_the_port_are_ignored",
            "parallel/job/test_rendezvous.py::test_a_crowd_of_silent_strangers_uses_up_no_files",
            "parallel/job/test_rendezvous.py::test_a_process_that_may_open_few_files_outlives_a_crowd",
            "parallel/job/test_rendezvous.py::test_who_gives_no_number_of_a_process_is_a_stranger",
            "parallel/job/test_rendezvous.py::test_what_process_0_reports_is_one_line",
            "parallel/job/test_monitor.py::test_a_reason_is_one_line",
            "parallel/job/test_cluster.py::test_a_time_out_without_end_is_refused",
            "parallel/job/test_cluster.py::test_more_processes_than_there_can_be_are_refused",
        ),
    ),
    Fault(
        "names and messages that steer a terminal",
        "control characters, markup and TeX in logs, tables, figures",
        "shown as they are, or as escapes",
        (
            "utils/test_streams.py",
            "logging/test_plots.py::test_any_name_is_a_text_of_a_figure",
        ),
    ),
    Fault(
        "the work directory is renamed or copied",
        "while the run writes to it, or after it was stopped",
        "exit code 73 and a line, same bits later",
        ("faults/test_moved.py",),
    ),
    Fault(
        "other names among checkpoints",
        "copies, links, foreign files, later steps",
        "ignored, or set aside",
        (
            "checkpoint/test_reader.py::"
            "test_a_checkpoint_under_the_name_of_another_step_isnt_believed",
            "checkpoint/test_reader.py::test_other_files_among_checkpoints_dont_matter",
            "checkpoint/test_corruption.py::"
            "test_a_folder_that_is_named_like_a_later_checkpoint_is_set_aside",
        ),
    ),
    Fault(
        "a checkpoint of another run, copied in",
        "under the same step, of the same shapes",
        "refused, nothing is touched",
        (
            "checkpoint/test_reader.py::test_a_checkpoint_of_another_run_isnt_believed",
            "train/test_resume.py::test_a_checkpoint_of_another_run_is_refused",
        ),
    ),
    Fault(
        "pipes, devices or links in the place of files",
        "files of a run, and files to be written",
        "one line, nothing is replaced",
        (
            "utils/test_files.py::test_only_regular_files_are_replaced",
            "utils/test_files.py::test_reading_a_pipe_is_an_error_and_waits_for_no_writer",
            "faults/test_storage.py::test_a_pipe_among_the_files_of_a_run_is_an_error",
        ),
    ),
    Fault(
        "names in which Orbax can't save",
        "brackets, other bytes than UTF-8",
        "exit code 73 at the start",
        (
            "checkpoint/test_workdir.py::"
            "test_a_name_in_which_orbax_cannot_save_is_refused_at_the_start",
        ),
    ),
    Fault(
        "few open files",
        "limits of 40, 64 and 256",
        "one line at the start, exit code 78",
        (
            "utils/test_files.py::test_as_many_files_may_be_open_as_the_system_allows",
            "parallel/job/test_rendezvous.py::test_more_processes_than_open_files_are_refused_at_once",
            "data/loaders/test_streaming.py::"
            "test_too_few_open_files_are_named_before_anything_is_compiled",
        ),
    ),
)
