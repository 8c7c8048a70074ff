# libiscsi's test suites against a disk of ours behind the kernel's iSCSI target. One process for each suite: 1.19 carries state from
# one suite to the next. What each prints goes to /out/SUITE.txt.
. "$(dirname "$0")/configfs.sh"
set -u
start_daemon || exit 1
make_backstore qcow2 /mnt/images/disk.qcow2 $((16 * 1024 * 1024)) || exit 1
make_iscsi_target iqn.2026-11.org.example:t1 && map_iscsi 0 || exit 1
url=iscsi://127.0.0.1/iqn.2026-11.org.example:t1/0
for suite in $(cat /mnt/suites); do
  timeout 100 iscsi-test-cu -d -S -n --test="ALL.$suite" $url $url >"/out/$suite.txt" 2>&1
  echo "suite: $suite ended with $? after $SECONDS s"
done
iscsi-inq $url >/dev/null || failed=1
rm "$iscsi/lun/lun_0/unit" && rmdir "$iscsi/lun/lun_0" && remove_backstore "$backstore" || failed=1
stop_daemon || failed=1
qemu-img check /mnt/images/disk.qcow2 || failed=1
exit $failed
