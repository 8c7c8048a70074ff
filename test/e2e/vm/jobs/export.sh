# `lunette export --transport lio`: targets of the kernel made and taken down by the command alone; discs in drives.
. "$(dirname "$0")/configfs.sh"
set -u
images=/mnt/images
modprobe -a sr_mod 2>/dev/null

# start_export ARGUMENTS: sets $export (process id) and $ready (the ready line).
start_export() {
  : >/out/export.txt
  node "$root/dist/src/cli/main.js" export --transport lio "$@" >/out/export.txt 2>>/out/export.log &
  export=$!
  for _ in $(seq 900); do
    ready=$(grep -m1 '^ready' /out/export.txt) && return 0
    kill -0 $export 2>/dev/null || break
    sleep 0.1
  done
  tail -5 /out/export.log
  return 1
}

# Ends it as Ctrl-C does: with status 0, and nothing is left in the kernel.
stop_export() {
  kill -INT $export
  wait $export || { echo "ended with $?"; tail -5 /out/export.log; return 1; }
  nothing_is_left
}

nothing_is_left() {
  ls "$target"/core | grep user_ && return 1
  ls "$target"/loopback "$target"/iscsi 2>/dev/null | grep -E '^(naa|iqn)' && return 1
  return 0
}

a_disk_of_this_machine() {
  start_export --fabric loopback $images/disk.qcow2 || return 1
  local disk
  disk=$(sed -n 's/^ready \(\/dev\/sd[a-z]*\) (disk.qcow2, qcow2, 128 MiB)$/\1/p' <<<"$ready")
  [ -b "$disk" ] || { echo "$ready"; return 1; }
  mkfs.ext4 -q "$disk" && mkdir -p /run/m && mount "$disk" /run/m || return 1
  cp /bin/busybox /run/m/ && umount /run/m || return 1
  e2fsck -fn "$disk" >/dev/null 2>&1 || return 1
  stop_export || return 1
  qemu-img check -q $images/disk.qcow2
}

two_units_of_one_target() {
  start_export --one-target --listen 127.0.0.1:3262 --name pair --read-only $images/disk.qcow2 $images/data.vmdk || return 1
  [ "$ready" = 'ready lio://iqn.2026-11.lunette.host:pair/0 (disk.qcow2, qcow2, 128 MiB)' ] || { echo "$ready"; return 1; }
  grep -q '^ready lio://iqn.2026-11.lunette.host:pair/1 (data.vmdk, vmdk, 32 MiB)' /out/export.txt || return 1
  local url=iscsi://127.0.0.1:3262/iqn.2026-11.lunette.host:pair
  qemu-img compare -U -f raw -F vmdk $url/1 $images/data.vmdk || return 1
  ! qemu-io -f raw -c 'write 0 4096' $url/0 >/dev/null 2>&1 || return 1
  # targetcli sees it as one of its own.
  timeout 120 targetcli ls >/out/listing.txt 2>&1
  grep -q 'o- disk .*qcow2' /out/listing.txt || grep -q 'o- disk' /out/listing.txt || { cat /out/listing.txt; return 1; }
  stop_export
}

chap_keeps_others_out() {
  echo 'a long enough secret' >/out/secret
  start_export --listen 127.0.0.1:3263 --name locked --chap me --chap-secret-file /out/secret $images/disk.qcow2 || return 1
  local url=127.0.0.1:3263/iqn.2026-11.lunette.host:locked/0
  ! iscsi-inq iscsi://$url >/dev/null 2>&1 || return 1
  LIBISCSI_CHAP_USERNAME=me LIBISCSI_CHAP_PASSWORD='a long enough secret' iscsi-inq iscsi://$url | grep -q LIO-ORG || return 1
  stop_export
}

writes_are_thrown_away() {
  local before after
  before=$(md5sum <$images/disk.qcow2)
  start_export --fabric loopback --ephemeral $images/disk.qcow2 || return 1
  local disk=${ready#ready }
  dd if=/dev/urandom of="${disk%% *}" bs=64k count=16 oflag=direct status=none || return 1
  stop_export || return 1
  after=$(md5sum <$images/disk.qcow2)
  [ "$before" = "$after" ] && ! ls /tmp/lunette-*/overlay.qcow2 2>/dev/null
}

# The image is opened by nobody afterwards, whatever became of the program.
a_killed_export_leaves_nothing() {
  start_daemon || return 1
  start_export --fabric loopback $images/disk.qcow2 || return 1
  kill -KILL $export
  wait $export 2>/dev/null
  for _ in $(seq 300); do
    nothing_is_left >/dev/null && break
    sleep 0.1
  done
  nothing_is_left || return 1
  qemu-img check -q $images/disk.qcow2 && stop_daemon
}

a_name_that_is_taken_is_said() {
  mkdir -p "$target"/loopback
  start_export --listen 127.0.0.1:3264 --name taken $images/disk.qcow2 || return 1
  local first=$export
  ! node "$root/dist/src/cli/main.js" export --transport lio --listen 127.0.0.1:3264 --name taken $images/data.vmdk >/dev/null 2>/out/refused.txt || return 1
  grep -q 'iqn.2026-11.lunette.host:taken: cannot be made (EEXIST)' /out/refused.txt || { cat /out/refused.txt; return 1; }
  export=$first
  stop_export
}

a_disc_in_a_drive() {
  start_export --fabric loopback --optical $images/a.iso || return 1
  grep -q '^ready /dev/sr[0-9]* (a.iso' <<<"$ready" || { echo "$ready"; return 1; }
  local drive=${ready#ready }
  cmp "${drive%% *}" $images/a.iso || return 1
  [ "$(blockdev --getss "${drive%% *}")" = 2048 ] || return 1
  stop_export
}

# targetcli's changemedium.
another_disc() {
  start_daemon || return 1
  made=20
  make_backstore image $images/a.iso "$(stat -c %s $images/a.iso)" || { cat /out/enable.txt; return 1; }
  local loop=$target/loopback/naa.5001405000000020/tpgt_1
  mkdir -p "$loop/lun/lun_0"
  echo naa.6001405000000020 >"$loop/nexus"
  ln -s "$backstore" "$loop/lun/lun_0/unit"
  for _ in $(seq 100); do
    ls /dev/sr* >/dev/null 2>&1 && break
    sleep 0.1
  done
  local drive
  drive=$(ls /dev/sr* | tail -1)
  cmp "$drive" $images/a.iso || return 1
  timeout 120 targetcli "/backstores/user:image changemedium disk21 $(stat -c %s $images/b.iso) $images/b.iso" >/out/medium.txt 2>&1
  grep -q 'Medium Changed' /out/medium.txt || { cat /out/medium.txt; return 1; }
  cmp "$drive" $images/b.iso || return 1
  grep -q b.iso "$backstore/info" || return 1
  # A file that is not there leaves the disc in.
  timeout 120 targetcli "/backstores/user:image changemedium disk21 4096 $images/missing.iso" >/out/medium.txt 2>&1
  grep -q 'missing.iso' /out/medium.txt || { cat /out/medium.txt; return 1; }
  cmp "$drive" $images/b.iso || return 1
  unmap_loop "$loop" && remove_backstore "$backstore" && stop_daemon
}

# Exports of the configuration: over the kernel and over a server of our own side by side; a reload takes one away.
the_configuration_is_served() {
  cat >/out/lunette.toml <<TOML
[lio]
listen = "127.0.0.1:3266"
[nbd]
socket = "/run/nbd.sock"
[[export]]
name = "kernel"
image = "$images/disk.qcow2"
transport = "lio"
read-only = true
[[export]]
name = "own"
image = "$images/data.vmdk"
transport = "nbd"
TOML
  start_daemon --config /out/lunette.toml || return 1
  local url=iscsi://127.0.0.1:3266/iqn.2026-11.lunette.host:kernel/0
  qemu-img compare -U -f raw -F qcow2 $url $images/disk.qcow2 >/dev/null || return 1
  qemu-img compare -U -f raw -F vmdk 'nbd+unix:///own?socket=/run/nbd.sock' $images/data.vmdk >/dev/null || return 1
  sed -i '/name = "kernel"/,/read-only/d; 0,/\[\[export\]\]/{/\[\[export\]\]/d}' /out/lunette.toml
  kill -HUP $daemon
  for _ in $(seq 300); do
    nothing_is_left >/dev/null && break
    sleep 0.1
  done
  nothing_is_left && grep -q 'removed export kernel' /out/daemon.log || { tail -5 /out/daemon.log; return 1; }
  qemu-img info 'nbd+unix:///own?socket=/run/nbd.sock' >/dev/null && stop_daemon
}

step a_disk_of_this_machine
step two_units_of_one_target
step chap_keeps_others_out
step writes_are_thrown_away
step a_name_that_is_taken_is_said
step a_killed_export_leaves_nothing
step a_disc_in_a_drive
step another_disc
step the_configuration_is_served
exit $failed
