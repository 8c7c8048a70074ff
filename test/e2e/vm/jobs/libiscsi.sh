# libiscsi's conformance suite through the kernel's iSCSI target, on a disk of ours; what fails there runs on a disk of the kernel's own
# (fileio) too. /mnt/tests names the tests and how many tries each has. One process for each: version 1.19 carries state from one to the
# next. What each prints goes to /out/ours/TEST.txt and /out/kernel/TEST.txt, and under it what it ended with and its milliseconds.
. "$(dirname "$0")/configfs.sh"
set -u
# The kernel tells the console of each command that it refuses: thousands, and each byte of a console is slow under emulation.
dmesg -n 1
size=$((64 * 1024 * 1024))
name=iqn.2026-11.org.example:t1
mkdir -p /out/ours /out/kernel

prepare() {
  start_daemon || return 1
  make_backstore qcow2 /mnt/images/disk.qcow2 $size || { cat /out/enable.txt; return 1; }
  ours=$backstore
  make_iscsi_target $name && map_iscsi 0 || return 1
  make_fileio /mnt/images/disk.raw $size && map_iscsi 1
}

# run_test WHOSE LUN TEST: its exit status.
run_test() {
  local url=iscsi://127.0.0.1/$name/$2 began=${EPOCHREALTIME/./} status
  timeout 200 iscsi-test-cu --dataloss --allow-sanitize --normal --test="$3" "$url" "$url" >"/out/$1/$3.txt" 2>&1
  status=$?
  echo "ended with $status after $(((${EPOCHREALTIME/./} - began) / 1000)) ms" >>"/out/$1/$3.txt"
  return $status
}

run_tests() {
  local test tries
  while read -r test tries; do
    until run_test ours 0 "$test" </dev/null; do
      tries=$((tries - 1))
      [ $tries -gt 0 ] || { run_test kernel 1 "$test" </dev/null; break; }
      sleep 2
    done
  done </mnt/tests
  # The disk is as alive as before.
  iscsi-inq iscsi://127.0.0.1/$name/0 >/dev/null
}

take_down() {
  rm "$iscsi"/lun/lun_*/unit && rmdir "$iscsi"/lun/lun_[01] || return 1
  remove_backstore "$ours" && remove_backstore "$backstore" && stop_daemon || return 1
  qemu-img check /mnt/images/disk.qcow2
}

step prepare
[ $failed = 0 ] || exit 1
step run_tests
step take_down
exit $failed
