//! Each bug of this crate's concern, planted, must fail a test here.

use super::{flip, gateway, leases, limits, making, remote, reopening, restored, snapshots, starttls, writers};
use drover_base::planted::{Bug, plant};
use std::panic::{AssertUnwindSafe, catch_unwind};

fn caught(bug: Bug, test: fn()) {
    plant(Some(bug));
    let outcome = catch_unwind(AssertUnwindSafe(test));
    plant(None);
    assert!(outcome.is_err(), "{bug:?} was planted and nothing failed");
}

#[test]
fn limits_that_stay_behind_are_caught() {
    caught(Bug::LimitsStayBehind, limits::a_destination_keeps_to_the_limits_from_its_first_request_on);
}

#[test]
fn a_proof_before_what_was_brought_is_durable_is_caught() {
    caught(Bug::ProofWithoutFlush, remote::what_the_flip_did_not_wait_for_is_served_brought_and_proven);
}

#[test]
fn a_forgotten_replay_is_caught() {
    caught(Bug::ReplayForgotten, gateway::acknowledged_writes_survive_the_holder_s_death);
}

#[test]
fn a_replay_over_newer_writes_is_caught() {
    caught(Bug::ReplayOverNewer, writers::what_others_have_flushed_is_not_replayed_over);
}

#[test]
fn a_second_writer_that_ends_no_term_is_caught() {
    caught(Bug::SecondWriterNotTold, writers::what_others_have_flushed_is_not_replayed_over);
}

#[test]
fn a_replay_that_nobody_awaits_is_caught() {
    caught(Bug::ReplayNotAwaited, writers::others_wait_for_a_gateway_that_comes_late);
    caught(Bug::ReplayNotAwaited, writers::a_snapshot_waits_for_the_replay);
    caught(Bug::ReplayNotAwaited, reopening::a_read_that_waited_for_the_opening_waits_for_the_replay);
}

#[test]
fn a_doubt_that_is_forgotten_is_caught() {
    caught(Bug::DoubtForgotten, writers::what_was_given_up_and_flushed_by_others_is_not_replayed_over);
}

#[test]
fn own_writes_that_are_not_kept_are_caught() {
    caught(Bug::OwnWritesNotKept, writers::what_the_holder_s_own_client_was_acknowledged_survives_a_takeover);
}

#[test]
fn a_superseded_instance_that_stays_is_caught() {
    caught(Bug::SupersededInstanceStays, writers::an_instance_that_was_superseded_is_another_when_it_holds_again);
}

#[test]
fn a_session_that_is_not_fenced_is_caught() {
    caught(Bug::SessionNotFenced, crate::session::tests::a_newer_connection_waits_for_the_older_one_s_requests);
}

#[test]
fn a_sending_that_does_not_compare_is_caught() {
    caught(Bug::SendNotCompared, reopening::a_sending_that_begins_again_compares);
}

#[test]
fn an_unchecked_epoch_is_caught() {
    caught(Bug::EpochNotChecked, leases::a_stopped_holder_serves_nothing_once_its_lease_ran_out);
}

#[test]
fn what_is_applied_after_it_was_given_up_is_caught() {
    caught(Bug::AppliedAfterGivenUp, leases::nobody_waits_longer_for_the_other_side_than_a_gateway_would);
}

#[test]
fn an_unfenced_acknowledgement_is_caught() {
    caught(Bug::AckNotFenced, leases::what_only_the_old_holder_has_is_not_acknowledged);
}

#[test]
fn a_flip_without_drain_is_caught() {
    caught(Bug::FlipWithoutDrain, flip::a_volume_moves_under_load_back_and_forth_and_is_released);
}

#[test]
fn an_unrecorded_way_back_is_caught() {
    caught(Bug::WayBackNotRecorded, flip::the_way_back_closes_and_opens_again);
}

#[test]
fn a_way_back_that_is_opened_late_is_caught() {
    caught(Bug::WayBackOpenedLate, reopening::a_way_back_that_a_reopening_closed_stays_closed_until_all_was_compared);
}

#[test]
fn a_standstill_that_counts_is_caught() {
    caught(Bug::StandstillCounts, writers::a_standstill_of_the_holder_is_not_the_gateway_s_absence);
    caught(Bug::StandstillCounts, writers::a_gateway_is_not_given_up_by_who_comes_long_after_its_time);
}

#[test]
fn a_making_that_is_not_awaited_is_caught() {
    caught(Bug::MakingNotAwaited, making::a_mirror_that_is_being_made_is_dropped_with_its_migration);
}

#[test]
fn a_promise_that_is_ignored_is_caught() {
    caught(Bug::PromisesIgnored, making::what_is_promised_to_a_copy_is_not_for_others);
}

#[test]
fn stale_requests_are_caught() {
    caught(Bug::StaleProgressAccepted, flip::requests_that_do_not_fit_are_refused);
}

#[test]
fn a_forgotten_operation_is_caught() {
    caught(Bug::OperationForgotten, snapshots::a_rollback_that_is_asked_again_is_done_once);
}

#[test]
fn an_unchecked_secret_is_caught() {
    caught(Bug::SecretNotChecked, gateway::strangers_are_not_served);
}

#[test]
fn plaintext_behind_starttls_is_caught() {
    caught(Bug::PlaintextBehindStartTls, starttls::what_is_added_unencrypted_is_not_answered);
}

#[test]
fn an_unchecked_label_is_caught() {
    caught(Bug::LabelNotChecked, crate::daemon::label::tests::exchanged_tiers_are_refused);
}

#[test]
fn a_mirror_that_is_not_awaited_is_caught() {
    caught(Bug::MirrorNotAwaited, flip::what_was_acknowledged_is_at_both_sides);
}

#[test]
fn a_loss_that_nobody_is_told_of_is_caught() {
    caught(Bug::LossNotTold, reopening::a_client_of_the_holder_is_told_once_that_its_writes_may_be_lost);
    caught(Bug::LossNotTold, reopening::a_gateway_that_connects_meanwhile_replays_too);
}

#[test]
fn a_restored_lease_that_is_trusted_is_caught() {
    caught(Bug::RestoredLeaseTrusted, restored::a_restored_holder_serves_nothing_before_it_is_told_to);
    caught(Bug::RestoredLeaseTrusted, restored::a_restored_mirror_is_no_copy);
}
