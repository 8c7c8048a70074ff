import assert from 'node:assert/strict';
import { get } from 'node:http';
import { test } from 'node:test';
import { CommandStatistics } from '../../../src/daemon/command-statistics.ts';
import { type MetricSources, Metrics } from '../../../src/daemon/metrics.ts';
import { MetricsEndpoint } from '../../../src/daemon/metrics-endpoint.ts';
import { newCounters } from '../../../src/iscsi/counters.ts';
import type { Cleanup } from '../../support/temporary.ts';

function measured(t: Cleanup, statistics = new CommandStatistics(), sources: Partial<MetricSources> = {}): Metrics {
  const metrics = new Metrics({
    iscsi: {
      units: () => [{ target: 'iqn.t', lun: 3, statistics }],
      sessions: () => new Map([['iqn.t', 2]]),
      counters: () => ({ ...newCounters(), loginsSucceeded: 5, loginsFailed: 3, authenticationFailures: 2 }),
    },
    cache: () => ({ hits: 10, coldHits: 4, misses: 7, evictions: 1, warmBytes: 100, coldBytes: 50, pinnedBytes: 25 }),
    ...sources,
  });
  t.after(() => metrics.close());
  return metrics;
}

async function values(metrics: Metrics): Promise<Map<string, number>> {
  const lines = (await metrics.text()).split('\n').filter((line) => line !== '' && !line.startsWith('#'));
  return new Map(
    lines.map((line) => [line.slice(0, line.lastIndexOf(' ')), Number(line.slice(line.lastIndexOf(' ') + 1))]),
  );
}

test('commands are counted by opcode and status, bytes by direction', async (t) => {
  const statistics = new CommandStatistics();
  for (let i = 0; i < 3; i++) statistics.observe(0x28, 0, 4096, 0, 0.2);
  statistics.observe(0x2a, 0x02, 0, 512, 3);
  statistics.observe(0x00, 0x77, 0, 0, 0);
  const found = await values(measured(t, statistics));
  const commands = (opcode: string, status: string) =>
    found.get(`lunette_scsi_commands_total{target="iqn.t",lun="3",opcode="${opcode}",status="${status}"}`);
  assert.equal(commands('0x28', 'good'), 3);
  assert.equal(commands('0x2a', 'check_condition'), 1);
  assert.equal(commands('0x00', 'other'), 1);
  assert.equal(found.get('lunette_scsi_bytes_total{target="iqn.t",lun="3",direction="read"}'), 3 * 4096);
  assert.equal(found.get('lunette_scsi_bytes_total{target="iqn.t",lun="3",direction="write"}'), 512);
});

test('latencies are a cumulative histogram in seconds, per kind of command', async (t) => {
  const statistics = new CommandStatistics();
  for (const ms of [0.04, 0.05, 0.2, 3, 60_000]) statistics.observe(0x88, 0, 0, 0, ms);
  statistics.observe(0x35, 0, 0, 0, 7);
  const found = await values(measured(t, statistics));
  const bucket = (kind: string, le: string) =>
    found.get(`lunette_scsi_latency_seconds_bucket{target="iqn.t",lun="3",kind="${kind}",le="${le}"}`);
  assert.deepEqual(
    ['0.00005', '0.0001', '0.00025', '0.005', '10', '+Inf'].map((le) =>
      bucket('read', String(le === '+Inf' ? le : Number(le))),
    ),
    [2, 2, 3, 4, 4, 5],
  );
  assert.equal(found.get('lunette_scsi_latency_seconds_count{target="iqn.t",lun="3",kind="read"}'), 5);
  assert.ok(
    Math.abs((found.get('lunette_scsi_latency_seconds_sum{target="iqn.t",lun="3",kind="read"}') ?? 0) - 60.00329) <
      1e-6,
  );
  assert.equal(bucket('flush', '0.01'), 1);
  assert.equal(bucket('write', '+Inf'), 0);
});

test('sessions, logins, cache and the process are there', async (t) => {
  const found = await values(measured(t));
  assert.equal(found.get('lunette_iscsi_sessions{target="iqn.t"}'), 2);
  assert.equal(found.get('lunette_iscsi_logins_total{result="success"}'), 5);
  assert.equal(found.get('lunette_iscsi_logins_total{result="authentication_failure"}'), 2);
  assert.equal(found.get('lunette_iscsi_logins_total{result="failure"}'), 1);
  assert.equal(found.get('lunette_cache_lookups_total{result="hit"}'), 6);
  assert.equal(found.get('lunette_cache_lookups_total{result="cold_hit"}'), 4);
  assert.equal(found.get('lunette_cache_bytes{kind="pinned"}'), 25);
  assert.ok((found.get('process_resident_memory_bytes') ?? 0) > 1e6);
  for (const quantile of ['0.5', '0.99', '1']) {
    assert.ok((found.get(`lunette_event_loop_delay_seconds{quantile="${quantile}"}`) ?? -1) >= 0);
  }
});

test('a blocked event loop shows in the delay', async (t) => {
  const metrics = measured(t);
  await new Promise((resolve) => setTimeout(resolve, 30));
  const end = performance.now() + 150;
  while (performance.now() < end);
  await new Promise((resolve) => setTimeout(resolve, 30));
  const found = await values(metrics);
  assert.ok((found.get('lunette_event_loop_delay_seconds{quantile="1"}') ?? 0) > 0.1);
});

test('counters are totals however often they are read', async (t) => {
  const statistics = new CommandStatistics();
  statistics.observe(0x28, 0, 4096, 0, 0.2);
  const metrics = measured(t, statistics);
  await values(metrics);
  const found = await values(metrics);
  assert.equal(found.get('lunette_scsi_bytes_total{target="iqn.t",lun="3",direction="read"}'), 4096);
  assert.equal(found.get('lunette_iscsi_logins_total{result="success"}'), 5);
});

test('the endpoint answers at /metrics and nowhere else', async (t) => {
  const endpoint = await MetricsEndpoint.listen({ host: '127.0.0.1', port: 0 }, measured(t));
  t.after(() => endpoint.close());
  const fetched = (path: string) =>
    new Promise<{ status: number | undefined; type: string | undefined; body: string }>((resolve, reject) => {
      get({ host: endpoint.address.host, port: endpoint.address.port, path }, (response) => {
        let body = '';
        response.setEncoding('utf8').on('data', (text: string) => {
          body += text;
        });
        response.on('end', () =>
          resolve({ status: response.statusCode, type: response.headers['content-type'], body }),
        );
      }).on('error', reject);
    });
  const found = await fetched('/metrics?x=1');
  assert.equal(found.status, 200);
  assert.match(found.type ?? '', /^text\/plain; version=0\.0\.4/);
  assert.match(found.body, /^# TYPE lunette_scsi_latency_seconds histogram$/m);
  assert.equal((await fetched('/')).status, 404);

  await assert.rejects(MetricsEndpoint.listen(endpoint.address, measured(t)), { code: 'EXISTS' });
});
