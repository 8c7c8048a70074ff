# For jobs of the VM: LIO through configfs, without targetcli, which takes five seconds to start under emulation. Source it.
target=/sys/kernel/config/target
lunette() { node "$root/dist/src/cli/main.js" "$@"; }
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../../.." && pwd)
made=0

# The daemon in the background, until it is ready. Its process id: $daemon.
start_daemon() {
  touch /out/daemon.log
  local before
  before=$(grep -c '^ready' /out/daemon.log)
  node "$root/dist/src/cli/main.js" daemon "$@" >>/out/daemon.log 2>&1 &
  daemon=$!
  for _ in $(seq 900); do
    [ "$(grep -c '^ready' /out/daemon.log)" -gt "$before" ] && return 0
    kill -0 $daemon 2>/dev/null || break
    sleep 0.1
  done
  echo "the daemon did not become ready"
  cat /out/daemon.log
  return 1
}

stop_daemon() {
  kill -TERM $daemon
  wait $daemon
}

# make_backstore HANDLER IMAGE SIZE [CONTROL]: sets $backstore. Patient: a daemon that is to complete it may be only starting.
make_backstore() {
  made=$((made + 1))
  backstore=$target/core/user_$made/disk$made
  mkdir -p "$backstore"
  echo -n "dev_config=$1/$2" >"$backstore/control"
  echo -n "dev_size=$3" >"$backstore/control"
  [ -z "${4:-}" ] || echo -n "$4" >"$backstore/control"
  if ! timeout 120 bash -c "echo 1 >$backstore/enable" 2>/out/enable.txt; then
    rmdir "$backstore" "${backstore%/*}"
    return 1
  fi
  printf '00000000-0000-0000-0000-%012d' $made >"$backstore/wwn/vpd_unit_serial"
}

# make_fileio FILE SIZE: a backstore that is the kernel's own, to compare with. Sets $backstore.
make_fileio() {
  made=$((made + 1))
  backstore=$target/core/fileio_$made/disk$made
  mkdir -p "$backstore"
  echo -n "fd_dev_name=$1,fd_dev_size=$2" >"$backstore/control"
  echo 1 >"$backstore/enable"
  printf '00000000-0000-0000-0000-%012d' $made >"$backstore/wwn/vpd_unit_serial"
}

remove_backstore() { timeout 40 rmdir "$1" "${1%/*}"; }

# Maps $backstore over tcm_loop: sets $device to the disk and $loop to what unmap_loop takes.
map_loop() {
  local before
  before=$(ls /sys/block)
  loop=$target/loopback/naa.$(printf '5001405%09d' $made)/tpgt_1
  mkdir -p "$loop/lun/lun_0"
  printf 'naa.6001405%09d' $made >"$loop/nexus"
  ln -s "$backstore" "$loop/lun/lun_0/unit"
  for _ in $(seq 100); do
    device=/dev/$(comm -13 <(echo "$before" | sort) <(ls /sys/block | sort) | grep '^sd' | head -1)
    [ -b "$device" ] && return 0
    sleep 0.1
  done
  echo "no disk appeared"
  return 1
}

unmap_loop() {
  timeout 60 rm "$1/lun/lun_0/unit"
  rmdir "$1/lun/lun_0" "$1" "${1%/*}"
}

# make_iscsi_target IQN, then map_iscsi NUMBER for $backstore: port 3260, no authentication.
make_iscsi_target() {
  iscsi=$target/iscsi/$1/tpgt_1
  mkdir -p "$iscsi/np/0.0.0.0:3260"
  for pair in authentication=0 demo_mode_write_protect=0 generate_node_acls=1 cache_dynamic_acls=1; do
    echo "${pair#*=}" >"$iscsi/attrib/${pair%=*}"
  done
  echo 1 >"$iscsi/enable"
}
map_iscsi() {
  mkdir -p "$iscsi/lun/lun_$1"
  ln -s "$backstore" "$iscsi/lun/lun_$1/unit"
}

# Each step says its name, and what it took.
step() {
  local began=$SECONDS
  echo "step: $*"
  if "$@"; then
    echo "passed: $* ($((SECONDS - began)) s)"
  else
    echo "FAILED: $*"
    failed=1
  fi
}
failed=0
