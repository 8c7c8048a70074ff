/** Servers that we did not write, slow, failing, killed while they work: what our client makes of it. */

import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { IoVec } from '../../../formats/index.ts';
import { NbdImage } from '../../../src/nbd/client.ts';
import { runLunette } from '../../support/lunette-export.ts';
import { type RunningNbd, startNbdExport, startNbdkit, startNbdkitAt, startQemuNbdAt } from '../../support/nbd.ts';
import { runOk } from '../../support/process.ts';
import { bytesWritten } from '../../support/process-usage.ts';
import { qemu } from '../../support/qemu.ts';
import { Random, randomFor } from '../../support/random.ts';
import { requires } from '../../support/requires.ts';
import { temporaryDirectory } from '../../support/temporary.ts';

const MiB = 1024 * 1024;
const SIZE = 8 * MiB;
const needs = requires.nbdkit() || requires.qemuNbd() || requires.nbdinfo();

/** A raw disk, and a server of each kind that can be killed and begun again at the same place. */
async function servers(t: TestContext) {
  const folder = await temporaryDirectory(t);
  const disk = join(folder, 'disk.raw');
  const bytes = new Random(3).bytes(SIZE);
  await writeFile(disk, bytes);
  const [k, q] = [join(folder, 'k'), join(folder, 'q')];
  const kinds: Record<string, () => Promise<RunningNbd>> = {
    nbdkit: () => startNbdkitAt(t, k, '--filter=delay', 'file', disk, 'rdelay=5ms', 'wdelay=5ms'),
    'qemu-nbd': () => startQemuNbdAt(t, q, disk, 'raw'),
  };
  return { folder, disk, bytes, kinds };
}

test('killed while it is read from: every read is answered by the next one, several times over', {
  skip: needs,
}, async (t) => {
  const random = randomFor(t);
  const { bytes, kinds } = await servers(t);
  for (const [name, begin] of Object.entries(kinds)) {
    let server = await begin();
    const image = await NbdImage.open(server.url, { readOnly: true, reconnectMs: 20_000 });
    for (let round = 0; round < 3; round++) {
      const reads = Array.from({ length: 64 }, async () => {
        const length = 1 + random.below(200_000);
        const offset = random.below(SIZE - length);
        const found = Buffer.alloc(length);
        await image.readv(offset, IoVec.of(found));
        assert.ok(found.equals(bytes.subarray(offset, offset + length)), name);
      });
      await sleep(random.below(30));
      await server.process.stop('SIGKILL');
      server = await begin();
      await Promise.all(reads);
    }
    await image.close();
    await server.process.stop();
  }
});

test('killed while it is written to: what it had not answered is written again, and once all is flushed all is there', {
  skip: needs,
}, async (t) => {
  const { disk, bytes, kinds } = await servers(t);
  for (const [name, begin] of Object.entries(kinds)) {
    let server = await begin();
    const image = await NbdImage.open(server.url, { connections: 1, reconnectMs: 20_000 });
    // Stopped, it answers none of them: all are sent to the next one.
    server.process.child.kill('SIGSTOP');
    const writes = Array.from({ length: 16 }, (_, i) => {
      const part = Buffer.alloc(100_000, i + 1);
      bytes.set(part, i * 150_000);
      return image.writev(i * 150_000, IoVec.of(part));
    });
    await sleep(20);
    await server.process.stop('SIGKILL');
    server = await begin();
    await Promise.all(writes);
    await image.flush();
    await image.close();
    await server.process.stop();
    assert.ok((await readFile(disk)).equals(bytes), name);
  }
});

test('killed with writes that were answered and not flushed: none is called durable, the error says so', {
  skip: needs,
}, async (t) => {
  const { kinds } = await servers(t);
  for (const begin of Object.values(kinds)) {
    const server = await begin();
    const image = await NbdImage.open(server.url, { reconnectMs: 20_000 });
    await image.writev(0, IoVec.of(Buffer.alloc(4096, 1)));
    await server.process.stop('SIGKILL');
    const next = await begin();
    await assert.rejects(image.flush(), { code: 'IO', message: /may be lost/, path: server.url });
    await assert.rejects(image.writev(0, IoVec.of(Buffer.alloc(512))), { code: 'IO' });
    await assert.rejects(image.close(), { code: 'IO' });
    await next.process.stop();
  }
});

test('one that stays away: requests fail in time with the address and the reason, later ones too', {
  skip: needs,
}, async (t) => {
  const { kinds } = await servers(t);
  for (const begin of Object.values(kinds)) {
    const server = await begin();
    const image = await NbdImage.open(server.url, { readOnly: true, reconnectMs: 300 });
    const reads = Promise.allSettled(
      Array.from({ length: 20 }, (_, i) => image.readv(i * 100_000, IoVec.of(Buffer.alloc(100_000)))),
    );
    await server.process.stop('SIGKILL');
    const settled = await reads;
    const failed = settled.filter(({ status }) => status === 'rejected') as PromiseRejectedResult[];
    for (const { reason } of failed) assert.equal((reason as { path?: string }).path, server.url);
    await assert.rejects(image.readv(0, IoVec.of(Buffer.alloc(10))), {
      path: server.url,
      message: /connect|connection/,
    });
    await image.close();
  }
});

test('one that hangs in the middle: the request is asked of another connection, and fails when that hangs, too', {
  skip: needs,
}, async (t) => {
  const slow = await startNbdkit(t, '--filter=delay', 'memory', '1M', 'rdelay=60');
  const image = await NbdImage.open(slow.url, {
    readOnly: true,
    connections: 1,
    requestTimeoutMs: 200,
    reconnectMs: 300,
  });
  await assert.rejects(image.readv(0, IoVec.of(Buffer.alloc(10))), { code: 'TIMEOUT', path: slow.url });
  await image.close();
  await slow.process.stop('SIGKILL');
});

test('slow and out of order: many requests under way, each with its own data', { skip: needs }, async (t) => {
  const folder = await temporaryDirectory(t);
  // Every read waits its own time: answers come in another order than questions.
  const script =
    'sleep 0.0$((RANDOM % 9)); dd if="$disk" skip=$4 count=$3 iflag=skip_bytes,count_bytes bs=64k 2>/dev/null';
  const disk = join(folder, 'disk.raw');
  const bytes = new Random(4).bytes(MiB);
  await writeFile(disk, bytes);
  const server = await startNbdkit(
    t,
    'eval',
    'thread_model=echo parallel',
    `get_size=echo ${MiB}`,
    `config=echo "$3" > $tmpdir/disk`,
    `disk=${disk}`,
    `pread=disk=$(cat $tmpdir/disk); ${script.replace('RANDOM', '$4 / 512')}`,
  );
  const image = await NbdImage.open(server.url, { readOnly: true });
  await Promise.all(
    Array.from({ length: 40 }, async (_, i) => {
      const found = Buffer.alloc(5000);
      await image.readv(i * 25_000, IoVec.of(found));
      assert.ok(found.equals(bytes.subarray(i * 25_000, i * 25_000 + 5000)));
    }),
  );
  await image.close();
});

test('errors of a server end convert, compare and export in words, and leave nothing half-made', {
  skip: needs,
}, async (t) => {
  const folder = await temporaryDirectory(t);
  const trigger = join(folder, 'trigger');
  const server = await startNbdkit(
    t,
    '--filter=error',
    'sparse-random',
    '64M',
    'seed=1',
    'runlength=1000000',
    'percent=40',
    'error-pread=EIO',
    'error-pread-rate=1',
    `error-pread-file=${trigger}`,
  );
  const target = join(folder, 'copy.qcow2');
  const good = await runLunette(['convert', '-f', 'raw', '-O', 'qcow2', server.url, target]);
  assert.equal(good.status, 0, good.stderr);
  await writeFile(trigger, '');
  const broken = join(folder, 'broken.qcow2');
  const converted = await runLunette(['convert', '-f', 'raw', '-O', 'qcow2', server.url, broken]);
  assert.equal(converted.status, 1);
  assert.match(converted.stderr, /error 5.*\(IO\)/);
  assert.ok(!existsSync(broken));
  const compared = await runLunette(['compare', '-f', 'raw', '-F', 'qcow2', server.url, target]);
  assert.ok(compared.status > 1, `status ${compared.status}`);
  assert.match(compared.stderr, /\(IO\)/);

  const exported = await startNbdExport(t, server.url, { args: ['--socket', '', '--read-only', '-f', 'raw'] });
  await assert.rejects(runOk('qemu-io', ['-r', '-f', 'raw', '-c', 'read 0 64k', exported.url]), /Input\/output error/);
  await runOk('rm', [trigger]);
  await runOk('qemu-io', ['-r', '-f', 'raw', '-c', 'read 0 64k', exported.url]);
  assert.equal((await exported.process.stop()).status, 0);
});

test('convert, compare, map and export of what nbdkit serves are what nbdcopy and QEMU see; and convert writes to it', {
  skip: needs,
}, async (t) => {
  const folder = await temporaryDirectory(t);
  const source = await startNbdkit(
    t,
    '--filter=delay',
    'sparse-random',
    '32M',
    'seed=2',
    'runlength=1000000',
    'percent=40',
    'rdelay=1ms',
    'delay-extents=1ms',
  );
  const [raw, ours] = [join(folder, 'raw'), join(folder, 'ours.qcow2')];
  await runOk('nbdcopy', [source.url, raw]);
  const converted = await runLunette(['convert', '-f', 'raw', '-O', 'qcow2', source.url, ours]);
  assert.equal(converted.status, 0, converted.stderr);
  assert.ok(await qemu.compare(raw, ours, '-f', 'raw', '-F', 'qcow2'));
  await qemu.assertClean(ours);
  const compared = await runLunette(['compare', '-f', 'raw', '-F', 'raw', source.url, raw]);
  assert.equal(compared.status, 0, compared.stderr);
  const ofMap = async (program: (args: string[]) => Promise<string>): Promise<unknown[]> =>
    (JSON.parse(await program(['map', '-f', 'raw', '--output=json', source.url])) as { start: number; zero: boolean }[])
      // Where neighbours of one kind are cut is everybody's own affair.
      .filter(({ zero }, i, all) => i === 0 || all[i - 1]?.zero !== zero)
      .map(({ start, zero }) => [start, zero]);
  assert.deepEqual(
    await ofMap(async (args) => (await runLunette(args)).stdout),
    await ofMap((args) => runOk('qemu-img', args)),
  );
  const served = await startNbdExport(t, source.url, { args: ['--socket', '', '--read-only', '-f', 'raw'] });
  assert.ok(await qemu.compare(served.url, raw, '-f', 'raw', '-F', 'raw'));
  await served.process.stop();

  const sink = join(folder, 'sink.raw');
  await writeFile(sink, '');
  await runOk('truncate', ['-s', '32M', sink]);
  const target = await startNbdkit(t, '--filter=delay', 'file', sink, 'wdelay=1ms');
  const written = await runLunette(['convert', '-n', '-f', 'qcow2', '-O', 'raw', ours, target.url]);
  assert.equal(written.status, 0, written.stderr);
  await target.process.stop();
  assert.ok((await readFile(sink)).equals(await readFile(raw)));
});

test('a convert whose server is killed half-way: from it, it goes on; to it, it says that writes may be lost', {
  skip: needs,
}, async (t) => {
  const folder = await temporaryDirectory(t);
  const [disk, socket] = [join(folder, 'disk.raw'), join(folder, 's')];
  await writeFile(disk, new Random(5).bytes(16 * MiB));
  const begin = () =>
    startNbdkitAt(t, socket, '--filter=rate', '--filter=delay', 'file', disk, 'rate=80M', 'wdelay=10ms');
  let server = await begin();
  const copy = join(folder, 'copy.raw');
  const running = runLunette(['convert', '-f', 'raw', '-O', 'raw', server.url, copy]);
  for (let i = 0; !existsSync(join(folder, '.copy.raw.lunette-new')) && i < 2000; i++) await sleep(5);
  await sleep(200);
  await server.process.stop('SIGKILL');
  server = await begin();
  const { status, stderr } = await running;
  assert.equal(status, 0, stderr);
  assert.ok((await readFile(copy)).equals(await readFile(disk)));

  const back = runLunette(['convert', '-n', '-f', 'raw', '-O', 'raw', copy, server.url]);
  const before = bytesWritten(server.process.pid);
  for (let i = 0; bytesWritten(server.process.pid) < before + 2 * MiB && i < 2000; i++) await sleep(5);
  await server.process.stop('SIGKILL');
  server = await begin();
  const failed = await back;
  assert.equal(failed.status, 1);
  assert.match(failed.stderr, /may be lost.*\(IO\)/);
});

test('servers without structured replies, without fixed newstyle, with one connection only', {
  skip: needs,
}, async (t) => {
  for (const args of [
    ['--no-sr'],
    ['--mask-handshake=0'],
    ['--mask-handshake=1'],
    ['--filter=noparallel', '--filter=multi-conn', 'multi-conn-mode=disable'],
  ]) {
    const filters = args.filter((arg) => arg.startsWith('--'));
    const rest = args.filter((arg) => !arg.startsWith('--'));
    const server = await startNbdkit(t, ...filters, 'pattern', '1M', ...rest);
    const image = await NbdImage.open(server.url, { readOnly: true });
    const bytes = Buffer.alloc(MiB);
    await Promise.all([0, 1, 2, 3].map((i) => image.readv((i * MiB) / 4, IoVec.of(bytes, (i * MiB) / 4, MiB / 4))));
    for (let at = 0; at < MiB; at += 8) assert.equal(bytes.readBigUInt64BE(at), BigInt(at));
    await image.close();
    await server.process.stop();
  }
  const old = await startNbdkit(t, '-o', 'pattern', '1M');
  await assert.rejects(NbdImage.open(old.url), { code: 'UNSUPPORTED', message: /oldstyle/ });
});
