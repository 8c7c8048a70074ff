/** A small Linux guest in QEMU, without KVM, that counts in its memory and reads its disk: what a saved state must bring back. */

import { existsSync } from 'node:fs';
import { mkdir, readdir, writeFile } from 'node:fs/promises';
import { connect } from 'node:net';
import { homedir } from 'node:os';
import { basename, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { PROJECT_ROOT, type RunningProcess, runOk, start } from './process.ts';
import { type Cleanup, temporaryDirectory } from './temporary.ts';

/** Prints its count and the first eight bytes of the disk five times a second; every tenth time it writes the count to the disk's second MiB. */
const INIT = `#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs devtmpfs /dev
for module in $($b cat /modules/order); do $b insmod "/modules/$module"; done
echo "guest: up"
i=0
while :; do
  i=$((i + 1))
  start=$($b dd if=/dev/vda bs=512 count=1 iflag=direct 2>/dev/null | $b head -c 8)
  if [ $((i % 10)) = 0 ]; then
    ($b printf %-512s "count $i") | $b dd of=/dev/vda bs=512 seek=2048 oflag=direct 2>/dev/null
  fi
  echo "guest: count $i disk $start"
  $b sleep 0.2
done
`;

export interface GuestFiles {
  readonly kernel: string;
  readonly initramfs: string;
}

/** The kernel of scripts/vm and an initramfs for it. */
export async function buildCountingGuest(t: Cleanup): Promise<GuestFiles> {
  await runOk(join(PROJECT_ROOT, 'scripts/vm/build'), [], { timeoutMs: 300_000 });
  const home = process.env.XDG_CACHE_HOME ?? join(homedir(), '.cache');
  const cache = process.env.LUNETTE_VM_CACHE ?? join(home, 'lunette-vm');
  const release = (await readdir(join(cache, 'kernel/lib/modules')))[0] as string;
  const folder = await temporaryDirectory(t);
  const root = join(folder, 'root');
  for (const name of ['bin', 'dev', 'modules']) await mkdir(join(root, name), { recursive: true });
  await writeFile(join(root, 'init'), INIT, { mode: 0o755 });
  const wanted = ['-d', join(cache, 'kernel'), '-S', release, '--show-depends', '-a', 'virtio_pci', 'virtio_blk'];
  const lines = (await runOk('modprobe', wanted)).split('\n').filter((line) => line.startsWith('insmod '));
  const modules = [...new Set(lines.map((line) => line.split(' ')[1] as string))];
  await runOk('cp', [...modules, join(root, 'modules')]);
  await writeFile(join(root, 'modules/order'), modules.map((module) => `${basename(module)}\n`).join(''));
  await runOk('cp', [(await runOk('sh', ['-c', 'command -v busybox'])).trim(), join(root, 'bin/busybox')]);
  const initramfs = join(folder, 'initramfs.gz');
  await runOk('sh', ['-c', `cd '${root}' && find . | cpio -o -H newc --quiet | gzip -1 > '${initramfs}'`]);
  return { kernel: join(cache, `kernel/boot/vmlinuz-${release}`), initramfs };
}

/** A line of the guest. */
export interface GuestCount {
  readonly count: number;
  readonly disk: string;
}

export class CountingGuest {
  readonly process: RunningProcess;
  readonly #monitor: string;

  constructor(process: RunningProcess, monitor: string) {
    this.process = process;
    this.#monitor = monitor;
  }

  /** All that the guest has said since this QEMU runs. */
  get counts(): GuestCount[] {
    const lines = this.process.stdout.matchAll(/^guest: count (\d+) disk ([^\r\n]*)\r?$/gm);
    return [...lines].map(([, count, disk]) => ({ count: Number(count), disk: disk as string }));
  }

  /** True when the guest has booted under this QEMU. */
  get booted(): boolean {
    return this.process.stdout.includes('guest: up');
  }

  /** Waits until it has counted on. */
  async waitForCounts(number: number): Promise<void> {
    for (let i = 0; this.counts.length < number; i++) {
      if (this.process.ended || i === 2400) {
        throw new Error(`the guest does not count: ${this.process.stdout.slice(-2000)}${this.process.stderr}`);
      }
      await sleep(50);
    }
  }

  /** Runs a command of the human monitor through QMP, and gives what it says: nothing when all is well. */
  async monitor(command: string): Promise<string> {
    const socket = connect(this.#monitor);
    socket.setEncoding('utf8');
    let text = '';
    let next: () => void = () => undefined;
    socket.on('data', (chunk) => {
      text += chunk;
      next();
    });
    const failed = new Promise<never>((_, reject) => socket.once('error', reject));
    const answer = async (): Promise<Record<string, unknown>> => {
      for (;;) {
        const end = text.indexOf('\n');
        if (end >= 0) {
          const message = JSON.parse(text.slice(0, end)) as Record<string, unknown>;
          text = text.slice(end + 1);
          if ('event' in message) continue;
          return message;
        }
        await Promise.race([
          failed,
          new Promise<void>((resolve) => {
            next = resolve;
          }),
        ]);
      }
    };
    try {
      await answer(); // the greeting
      socket.write('{"execute":"qmp_capabilities"}\n');
      await answer();
      const request = { execute: 'human-monitor-command', arguments: { 'command-line': command } };
      socket.write(`${JSON.stringify(request)}\n`);
      const reply = await answer();
      if (!('return' in reply)) throw new Error(`QEMU: ${JSON.stringify(reply)}`);
      return String(reply.return);
    } finally {
      socket.destroy();
    }
  }

  /** Ends QEMU, which closes its images. */
  async quit(): Promise<void> {
    await this.monitor('quit').catch(() => '');
    await this.process.wait();
  }
}

/** Boots the guest with a qcow2 disk, or resumes it from a snapshot of that. */
export async function startCountingGuest(
  t: Cleanup,
  { kernel, initramfs }: GuestFiles,
  disk: string,
  ...args: string[]
): Promise<CountingGuest> {
  const monitor = join(await temporaryDirectory(t), 'm');
  const running = start(t, 'qemu-system-x86_64', [
    ...['-accel', 'tcg', '-cpu', 'qemu64', '-m', '96', '-display', 'none', '-no-reboot', '-nodefaults'],
    ...['-serial', 'stdio', '-qmp', `unix:${monitor},server=on,wait=off`],
    ...['-kernel', kernel, '-initrd', initramfs, '-append', 'console=ttyS0 quiet panic=-1'],
    ...['-drive', `file=${disk},if=none,id=disk,format=qcow2`, '-device', 'virtio-blk-pci,drive=disk'],
    ...args,
  ]);
  for (let i = 0; !existsSync(monitor); i++) {
    if (running.ended || i === 1200) throw new Error(`QEMU does not start: ${running.stderr}`);
    await sleep(50);
  }
  return new CountingGuest(running, monitor);
}
