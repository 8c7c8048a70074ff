# libiscsi's test suites through the kernel's iSCSI target: on a disk of ours, and what fails there on a disk of the kernel's own (fileio)
# too. One process for each suite: 1.19 carries state from one suite to the next. What each prints goes to /out/ours/SUITE.txt and
# /out/kernel/SUITE.txt.
. "$(dirname "$0")/configfs.sh"
set -u
size=$((64 * 1024 * 1024))
name=iqn.2026-11.org.example:t1
start_daemon || exit 1
make_backstore qcow2 /mnt/images/disk.qcow2 $size || { cat /out/enable.txt; exit 1; }
ours=$backstore
make_iscsi_target $name && map_iscsi 0 || exit 1
make_fileio /mnt/images/disk.raw $size && map_iscsi 1 || exit 1
mkdir -p /out/ours /out/kernel

run_suite() {
  local url=iscsi://127.0.0.1/$name/$3
  timeout 400 iscsi-test-cu -d -S -v --test="ALL.$2" $url $url >"/out/$1/$2.txt" 2>&1
  echo "ended with $?" >>"/out/$1/$2.txt"
}
for suite in $(cat /mnt/suites); do
  run_suite ours "$suite" 0
  failed_tests=$(awk '$1 == "tests" {print $5}' "/out/ours/$suite.txt")
  echo "suite: $suite: ${failed_tests:-ended early}, after $SECONDS s"
  [ "$failed_tests" = 0 ] || run_suite kernel "$suite" 1
done
iscsi-inq iscsi://127.0.0.1/$name/0 >/dev/null || failed=1
rm "$iscsi"/lun/lun_*/unit && rmdir "$iscsi"/lun/lun_[01] && remove_backstore "$ours" && remove_backstore "$backstore" || failed=1
stop_daemon || failed=1
qemu-img check /mnt/images/disk.qcow2 || failed=1
exit $failed
