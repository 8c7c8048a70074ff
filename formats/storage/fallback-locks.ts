/** Byte-range locks without the addon: Node cannot make the system call, Perl can; without Perl others' locks are at least seen. */

import { spawn } from 'node:child_process';
import type { ByteLocker, LockChange, LockOutcome } from './image-lock.ts';
import { locksOnFile } from './lock-holders.ts';
import type { OpenFile } from './open-file.ts';

/**
 * Changes locks on descriptor 3 with F_OFD_SETLK (37) and F_OFD_GETLK (36). The descriptor is a copy of ours, so it is the same open
 * file description: what it locks stays locked when Perl ends. struct flock as on 64-bit Linux: type, whence, start, length, pid.
 * Prints `done`, `conflict BYTE PID` or `errno NUMBER`.
 */
const SCRIPT = `
use strict;
my ($take, $test, $release) = map { [split /,/] } @ARGV;
open(my $file, '<&=', 3) or die;
sub control {
  my ($command, $type, $byte) = @_;
  my $range = pack('s s x4 q q i x4', $type, 0, $byte, 1, 0);
  fcntl($file, $command, $range) or return (0 + $!);
  return (0, unpack('s s x4 q q i', $range));
}
sub undo { control(37, 2, $_) for @_ }
sub end { print "@_\\n"; exit 0 }
my @taken;
for my $byte (@$take) {
  my ($errno) = control(37, 0, $byte);
  if ($errno) { undo(@taken); end($errno == 11 || $errno == 13 ? "conflict $byte 0" : "errno $errno") }
  push @taken, $byte;
}
for my $byte (@$test) {
  my ($errno, $type, $whence, $start, $length, $pid) = control(36, 1, $byte);
  if ($errno) { undo(@taken); end("errno $errno") }
  if ($type != 2) { undo(@taken); end("conflict $byte $pid") }
}
undo(@$release);
end('done');
`;

export class FallbackLocker implements ByteLocker {
  readonly #perl: string;

  /** @param perl the program to run, looked for on PATH */
  constructor(perl = 'perl') {
    this.#perl = perl;
  }

  async change(file: OpenFile, change: LockChange): Promise<LockOutcome> {
    if (change.take.length + change.test.length + change.release.length === 0) return { kind: 'done' };
    const answer = process.platform === 'linux' ? await this.#run(file, change) : undefined;
    const [word, first, second] = (answer ?? '').split(' ');
    if (word === 'done') return { kind: 'done' };
    if (word === 'conflict') {
      const pid = Number(second);
      return { kind: 'conflict', byte: Number(first), ...(pid > 0 ? { pid } : {}) };
    }
    return look(
      file,
      change,
      word === 'errno' ? `error ${first} from the kernel` : 'neither the addon nor Perl is there',
    );
  }

  /** The script's line; undefined when it did not run to its end. */
  #run(file: OpenFile, change: LockChange): Promise<string | undefined> {
    return new Promise((resolve) => {
      const lists = [change.take, change.test, change.release].map((bytes) => bytes.join(','));
      const child = spawn(this.#perl, ['-e', SCRIPT, ...lists], { stdio: ['ignore', 'pipe', 'ignore', file.fd] });
      let output = '';
      child.stdout?.setEncoding('latin1').on('data', (text: string) => {
        output += text;
      });
      child.once('error', () => resolve(undefined));
      child.once('close', (status) => resolve(status === 0 ? output.trim() : undefined));
    });
  }
}

/** Without locks of our own: whether others' are in the way now. */
async function look(file: OpenFile, change: LockChange, why: string): Promise<LockOutcome> {
  const locks = await locksOnFile(file.identity);
  if (locks === undefined) {
    return { kind: 'partial', why: `image locks do not work here (${why}): nothing keeps other programs from writing` };
  }
  for (const byte of change.test) {
    const lock = locks.find(({ first, last }) => first <= byte && byte <= last);
    if (lock !== undefined) return { kind: 'conflict', byte, ...(lock.pid > 0 ? { pid: lock.pid } : {}) };
  }
  return { kind: 'partial', why: `other programs cannot see that the image is in use (${why})` };
}
