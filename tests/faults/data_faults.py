"""Faults of data, of files that are read, and of the machine."""

from tests.faults.row import Fault

DATA_FAULTS = (
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
            "faults/test_weight_pickles.py",
            "faults/test_weight_bombs.py",
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
            "checkpoint/test_corruption.py::test_a_checkpoint_that_cannot_be_reached_is_left_alone",
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
)
