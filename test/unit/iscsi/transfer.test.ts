import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { MemoryPortal } from '../../support/iscsi-endpoint.ts';
import { cdb16 } from '../../support/iscsi-initiator.ts';
import { BLOCK, pattern } from '../../support/iscsi-steps.ts';

describe('reads and writes', () => {
  for (const [name, keys] of Object.entries({
    'with immediate data': {},
    'without immediate data': { ImmediateData: 'No' },
    'with R2Ts only': { ImmediateData: 'No', InitialR2T: 'Yes' },
    'with small segments and bursts': {
      MaxRecvDataSegmentLength: '8192',
      MaxBurstLength: '16384',
      FirstBurstLength: '4096',
    },
    'with segments of an odd size': {
      MaxRecvDataSegmentLength: '1001',
      MaxBurstLength: '3000',
      FirstBurstLength: '513',
    },
    'with both digests': { HeaderDigest: 'CRC32C', DataDigest: 'CRC32C' },
    'with a data digest and one R2T at a time': {
      DataDigest: 'CRC32C,None',
      MaxOutstandingR2T: '1',
      InitialR2T: 'Yes',
    },
  })) {
    test(`what is written is read back ${name}, in any chunking`, async () => {
      for (const chunk of [undefined, 1, 47, 1000]) {
        const portal = new MemoryPortal();
        const connection = await portal.session(keys);
        const { initiator } = connection;
        connection.chunk = chunk;
        for (const length of [BLOCK, 8 * BLOCK, 200 * BLOCK, 1200 * BLOCK]) {
          if (chunk === 1 && length > 200 * BLOCK) continue; // slow, and nothing new
          const data = pattern(length, length);
          await initiator.write(3, data);
          assert.deepEqual(Buffer.from(portal.device.disk.subarray(3 * BLOCK, 3 * BLOCK + length)), data);
          assert.deepEqual(await initiator.read(3, length / BLOCK), data);
        }
        assert.equal(portal.counters.rejects, 0);
      }
    });
  }

  test('commands that complete later are answered in the order of their completion', async () => {
    const portal = new MemoryPortal();
    const { initiator } = await portal.session();
    portal.device.disk.set(pattern(64 * BLOCK));
    portal.device.async = () => true;
    const done: number[] = [];
    const reads = [0, 8, 16].map((lba) =>
      initiator.read(lba, 8).then((data) => {
        done.push(lba);
        assert.deepEqual(data, Buffer.from(portal.device.disk.subarray(lba * BLOCK, (lba + 8) * BLOCK)));
      }),
    );
    await portal.device.waiting(3);
    portal.device.running[2]?.finish();
    await reads[2];
    portal.device.running[0]?.finish();
    await reads[0];
    portal.device.release();
    await Promise.all(reads);
    assert.deepEqual(done, [16, 0, 8]);
  });

  test('a read that fits in a Data-In brings its status along, a longer one in its last Data-In', async () => {
    const portal = new MemoryPortal();
    const { initiator } = await portal.session({ MaxRecvDataSegmentLength: '4096' });
    const one = await initiator.command(cdb16(0x88, 0, 8), { readLength: 8 * BLOCK });
    assert.equal(one.dataIns, 1);
    const four = await initiator.command(cdb16(0x88, 0, 32), { readLength: 32 * BLOCK });
    assert.equal(four.dataIns, 4);
    assert.equal(portal.counters.commands, 2);
    // Login took two responses, each read one: StatSN counts responses, not Data-Ins.
    assert.equal(initiator.expStatSN, 1 + 2 + 2);
  });

  test('sequences of Data-In end at MaxBurstLength', async () => {
    const { initiator } = await new MemoryPortal().session({
      MaxRecvDataSegmentLength: '4096',
      MaxBurstLength: '10240',
    });
    const result = await initiator.command(cdb16(0x88, 0, 50), { readLength: 50 * BLOCK });
    assert.deepEqual(result.sequences, [10240, 10240, 5120]);
    assert.equal(result.dataIns, 3 + 3 + 2);
  });

  test('memory goes back when commands are over', async () => {
    const portal = new MemoryPortal();
    const { initiator } = await portal.session({ ImmediateData: 'No', InitialR2T: 'Yes' });
    portal.device.async = () => true;
    const all = Promise.all([initiator.write(0, pattern(900 * BLOCK)), initiator.read(0, 1500), initiator.read(0, 1)]);
    await portal.device.waiting(3);
    assert.ok(portal.pool.used > 0);
    portal.device.release();
    await all;
    await initiator.ping();
    await new Promise((resolve) => setImmediate(resolve));
    assert.equal(portal.pool.used, 0);
  });
});

describe('residuals', () => {
  const cases = [
    { name: 'a read of less than expected', cdb: cdb16(0x88, 0, 1), readLength: 1024, residual: -512, moved: 512 },
    { name: 'a read of more than expected', cdb: cdb16(0x88, 0, 2), readLength: 512, residual: 512, moved: 512 },
    { name: 'a read without a transfer', cdb: cdb16(0x88, 0, 2), readLength: 0, residual: 1024, moved: 0 },
    {
      name: 'a command without data where data is expected',
      cdb: cdb16(0x00, 0, 0),
      readLength: 512,
      residual: -512,
      moved: 0,
    },
  ];
  for (const { name, cdb, readLength, residual, moved } of cases) {
    test(`${name} says so`, async () => {
      const { initiator } = await new MemoryPortal().session();
      const result = await initiator.command(cdb, { readLength });
      assert.equal(result.status, 0);
      assert.equal(result.residual, residual);
      assert.equal(result.data.length, moved);
    });
  }

  test('a write gets no more data than its CDB asks for, and says that some is left', async () => {
    const portal = new MemoryPortal();
    const { initiator } = await portal.session();
    const result = await initiator.command(cdb16(0x8a, 1, 1), { dataOut: pattern(3 * BLOCK) });
    assert.equal(result.residual, -2 * BLOCK);
    assert.deepEqual(
      Buffer.from(portal.device.disk.subarray(BLOCK, 3 * BLOCK)),
      Buffer.concat([pattern(BLOCK), Buffer.alloc(BLOCK)]),
    );
  });

  test('surplus data that comes unasked is dropped, and the session goes on', async () => {
    const portal = new MemoryPortal();
    const { initiator } = await portal.session({ MaxRecvDataSegmentLength: '8192' });
    const result = await initiator.command(cdb16(0x8a, 0, 1), { dataOut: pattern(60_000) });
    assert.equal(result.residual, BLOCK - 60_000);
    const refused = await initiator.command(cdb16(0x8a, 1e9, 1), { dataOut: pattern(60_000) });
    assert.equal(refused.status, 2);
    await initiator.ping();
  });

  test('a write of more than the initiator sends gets what it sends', async () => {
    const { initiator } = await new MemoryPortal().session();
    const result = await initiator.command(cdb16(0x8a, 0, 2), { dataOut: pattern(BLOCK) });
    assert.equal(result.residual, BLOCK);
  });
});

describe('sense', () => {
  for (const length of [18, 252]) {
    test(`${length} bytes of sense come with a CHECK CONDITION`, async () => {
      const portal = new MemoryPortal();
      const { initiator } = await portal.session({ HeaderDigest: 'CRC32C', DataDigest: 'CRC32C' });
      portal.device.senseLength = length;
      const result = await initiator.command([0xc1], { readLength: 10 });
      assert.equal(result.status, 2);
      assert.equal(result.sense.length, length);
      assert.equal(result.sense[12], 0x20);
    });
  }

  test('a read that fails on its way gives no data', async () => {
    const portal = new MemoryPortal();
    const { initiator } = await portal.session();
    portal.device.async = () => true;
    const result = initiator.command([0xc1], { readLength: 4096 });
    await portal.device.waiting(1);
    portal.device.release();
    assert.equal((await result).status, 2);
    assert.equal((await result).dataIns, 0);
  });
});
