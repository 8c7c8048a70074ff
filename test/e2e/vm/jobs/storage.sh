# Disks over the kernel's iSCSI target and tcm_loop: file systems, a verifying load, resets in the middle of it, commands that make no sense.
. "$(dirname "$0")/configfs.sh"
set -u
images=/mnt/images
name=iqn.2026-11.org.example:t1

start_daemon || exit 1

# Under emulation, beside other work, a daemon may take a minute to start: what would be a second on a machine.
patience=180

log_in() {
  make_backstore qcow2 $images/disk.qcow2 $((512 * 1024 * 1024)) || { cat /out/enable.txt; return 1; }
  over_iscsi=$backstore
  echo $patience >"$backstore/attrib/cmd_time_out" || return 1
  make_iscsi_target $name && map_iscsi 0 || return 1
  mkdir -p /etc/iscsi /run/lock/iscsi
  echo "InitiatorName=iqn.2026-11.org.example:initiator" >/etc/iscsi/initiatorname.iscsi
  iscsid || return 1
  iscsiadm -m discovery -t sendtargets -p 127.0.0.1 >/dev/null || return 1
  local before
  before=$(ls /sys/block)
  iscsiadm -m node -T $name -p 127.0.0.1 --login >/dev/null || return 1
  for _ in $(seq 100); do
    disk=/dev/$(comm -13 <(echo "$before" | sort) <(ls /sys/block | sort) | grep '^sd' | head -1)
    [ -b "$disk" ] && echo $patience >"/sys/block/${disk#/dev/}/device/timeout" && return 0
    sleep 0.1
  done
  return 1
}

file_system() {
  mkfs.ext4 -q "$disk" || return 1
  mkdir -p /fs && mount "$disk" /fs || return 1
  tar -C /fs -xf $images/tree.tar || return 1
  sync
  (cd /fs && md5sum --quiet -c /mnt/images/tree.md5) || return 1
  # What is removed and trimmed is given back to the host.
  local before after
  dd if=/dev/urandom of=/fs/big bs=1M count=16 conv=fsync status=none || return 1
  before=$(stat -c %b $images/disk.qcow2)
  rm -r /fs/tree/b /fs/big
  # What a transaction frees is free when it is committed.
  sync -f /fs && fstrim /fs && sync "$disk" || return 1
  for _ in $(seq 100); do
    after=$(stat -c %b $images/disk.qcow2)
    [ $(((before - after) / 2048)) -ge 15 ] && break
    sleep 0.1
  done
  [ $(((before - after) / 2048)) -ge 15 ] || { echo "the image had $before blocks, now $after"; return 1; }
  umount /fs && fsck.ext4 -fn "$disk" >/out/fsck.txt || { cat /out/fsck.txt; return 1; }
  mount "$disk" /fs && (cd /fs && grep ' tree/a' /mnt/images/tree.md5 | md5sum --quiet -c -) && umount /fs
}

# Every block that is written is read back and compared.
verify() {
  fio --name=verify --filename="$1" --direct=1 --ioengine=libaio --iodepth=16 --rw=randwrite --bs=4k-64k --size=24m --verify=crc32c \
    --verify_fatal=1 --do_verify=1 --eta=never --output=/out/fio.txt || { tail -30 /out/fio.txt; return 1; }
}

load_is_verified() { verify "$disk"; }

loop_works_beside_it() {
  make_backstore vmdk $images/disk.vmdk $((256 * 1024 * 1024)) || return 1
  over_loop=$backstore
  map_loop && verify "$device" || return 1
  unmap_loop "$loop" && remove_backstore "$over_loop"
}

# The commands that the kernel sends us as they are, with whatever is in them.
hostile_commands() {
  make_backstore qcow2 $images/hostile.qcow2 $((16 * 1024 * 1024)) || return 1
  local hostile=$backstore
  map_loop || return 1
  timeout 300 python3 "$root/test/support/programs/hostile-commands.py" 2000 "$(cat /mnt/seed)" "$device" 30 || return 1
  # The disk, and its neighbour, are as alive as before.
  dd if="$device" of=/dev/null bs=64k count=1 iflag=direct status=none || return 1
  dd if="$disk" of=/dev/null bs=64k count=1 iflag=direct status=none || return 1
  unmap_loop "$loop" && remove_backstore "$hostile"
}

# The administrator's reset while commands are in flight: they come again.
ring_is_reset_under_load() {
  fio --name=reset --filename="$disk" --direct=1 --ioengine=libaio --iodepth=8 --rw=randrw --bs=4k-64k --offset=320m --size=16m \
    --verify=crc32c --verify_fatal=1 --do_verify=1 --eta=never --output=/out/fio-reset.txt &
  local load=$!
  sleep 1
  for _ in 1 2 3; do
    echo 1 >"$over_iscsi/action/block_dev"
    echo 1 >"$over_iscsi/action/reset_ring"
    echo 0 >"$over_iscsi/action/block_dev"
    sleep 0.5
  done
  wait $load || { tail -30 /out/fio-reset.txt; return 1; }
}

log_out() {
  iscsiadm -m node -T $name -p 127.0.0.1 --logout >/dev/null || return 1
  rm "$iscsi/lun/lun_0/unit" && rmdir "$iscsi/lun/lun_0" && remove_backstore "$over_iscsi" || return 1
  stop_daemon || return 1
  qemu-img check $images/hostile.qcow2 || return 1
  qemu-img check $images/disk.qcow2 || return 1
  lunette check $images/disk.qcow2 && lunette check $images/disk.vmdk
}

step log_in
step file_system
step load_is_verified
step ring_is_reset_under_load
step loop_works_beside_it
step hostile_commands
step log_out
exit $failed
