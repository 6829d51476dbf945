-- A database as the Python service made and filled it: its schema, its announce(), and what years of use leave
-- behind.

CREATE TABLE jobs (
    agreementid character varying(255) NOT NULL,
    workflowid character varying(255) NOT NULL,
    owner character varying(255),
    status integer,
    statustext character varying(255),
    laststatusupdate timestamp without time zone DEFAULT now(),
    datecreated timestamp without time zone DEFAULT now(),
    datefinished timestamp without time zone,
    configlogurl text,
    publishlogurl text,
    algologurl text,
    outputsurl text,
    ddo text,
    namespace character varying(255),
    stopreq smallint DEFAULT 0,
    removed smallint DEFAULT 0,
    workflow text,
    provider character varying(255),
    did character varying(255),
    chainid character varying(255)
);
CREATE UNIQUE INDEX uniq_agreementid_workflowid ON jobs USING btree (agreementid, workflowid);
CREATE INDEX indx_owner_jobs ON jobs USING btree (owner);

CREATE TABLE envs (
    namespace character varying(255) NOT NULL,
    status text,
    lastping timestamp without time zone DEFAULT now()
);
CREATE UNIQUE INDEX unique_namespace ON envs USING btree (namespace);

CREATE TABLE nonces (
    provider character varying(255) NOT NULL,
    nonce character varying(255)
);

CREATE FUNCTION announce(environment character varying, fullstatus text, lmt integer)
    RETURNS TABLE(workflow character varying)
    LANGUAGE plpgsql
    AS $$
    BEGIN
        INSERT INTO envs (namespace, status, lastping) VALUES (environment, fullstatus, now())
            ON CONFLICT (namespace) DO UPDATE SET status = EXCLUDED.status, lastping = EXCLUDED.lastping;
        RETURN QUERY SELECT workflowid FROM jobs WHERE namespace = environment AND status = 1 LIMIT lmt;
    END
$$;

-- A sound workflow for whoever needs one.
CREATE FUNCTION pg_temp.document(job text, algorithm text, input text) RETURNS text LANGUAGE sql AS $$
    SELECT json_build_object(
        'apiVersion', 'v0.0.1', 'kind', 'WorkFlow',
        'metadata', json_build_object('name', job, 'namespace', 'ocean-compute', 'labels', json_build_object('workflow', job),
                                      'secret', md5(job)),
        'spec', json_build_object('metadata', json_build_object('stages', json_build_array(json_build_object(
            'index', 0,
            'input', json_build_array(json_build_object('id', input, 'url', json_build_array('https://example.org/d'), 'index', 0)),
            'compute', json_build_object('namespace', 'ocean-compute', 'maxtime', 3600),
            'algorithm', json_build_object('id', algorithm, 'rawcode', 'print()', 'container',
                json_build_object('image', 'python', 'tag', '3', 'entrypoint', 'python $ALGO')),
            'output', json_build_object())))))::text
$$;

INSERT INTO jobs (agreementid, workflowid, owner, status, statustext, datecreated, datefinished, outputsurl, namespace,
                  stopreq, removed, workflow, provider)
VALUES
    -- Finished, with outputs.
    ('0xfinished', 'f0000000000000000000000000000001', '0xOldOwner', 70, 'Job finished', '2024-03-01 10:00:00.123456',
     '2024-03-01 10:05:00', '[{"filename": "out.txt", "filesize": 5, "type": "output", "url": "http://127.0.0.1:1/out.txt"}]',
     'ocean-compute', 0, 0, pg_temp.document('f0000000000000000000000000000001', 'did:op:algo', 'did:op:data'),
     '0x00000000000000000000000000000000000000a1'),
    -- Two unfinished jobs of one agreement.
    ('0xdouble', 'd0000000000000000000000000000001', '0xOldOwner', 40, 'Running algorithm', '2024-03-02 10:00:00', NULL, NULL,
     'ocean-compute', 0, 0, pg_temp.document('d0000000000000000000000000000001', 'did:op:algo', 'did:op:data'),
     '0x00000000000000000000000000000000000000a2'),
    ('0xdouble', 'd0000000000000000000000000000002', '0xOldOwner', 1, 'Warming up', '2024-03-02 10:00:01', NULL, NULL,
     'ocean-compute', 0, 0, pg_temp.document('d0000000000000000000000000000002', 'did:op:algo', 'did:op:data'),
     '0x00000000000000000000000000000000000000a3'),
    -- Damaged, empty and missing workflows.
    ('0xdamaged', 'b0000000000000000000000000000001', '0xDamaged', 40, 'Running algorithm', '2024-03-03 10:00:01', NULL, NULL,
     'ocean-compute', 0, 0, '{"apiVersion": "v0.0.1", "kind": "WorkFl', '0x00000000000000000000000000000000000000a4'),
    ('0xempty', 'b0000000000000000000000000000002', '0xDamaged', 40, 'Running algorithm', '2024-03-03 10:00:02', NULL, '',
     'ocean-compute', 0, 0, '', '0x00000000000000000000000000000000000000a5'),
    ('0xnull', 'b0000000000000000000000000000003', '0xDamaged', 40, 'Running algorithm', '2024-03-03 10:00:03', NULL, '[]',
     'ocean-compute', 0, 0, NULL, NULL),
    ('0xnulltext', 'b0000000000000000000000000000004', '0xDamaged', NULL, NULL, '2024-03-03 10:00:04', NULL, 'damaged',
     NULL, NULL, NULL, 'null', NULL),
    -- Ended by a provisioning that failed; one that an operator wrote by hand, without dates.
    ('0xfailed', 'f0000000000000000000000000000002', '0xOldOwner', 31, 'Data provisioning failed', '2024-03-04 10:00:00',
     '2024-03-04 10:01:00', NULL, 'ocean-compute', 0, 0,
     pg_temp.document('f0000000000000000000000000000002', 'did:op:algo', 'did:op:data'), NULL),
    ('0xbyhand', 'by-hand', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);

-- What years leave behind.
INSERT INTO jobs (agreementid, workflowid, owner, status, statustext, datecreated, datefinished, namespace, workflow, provider)
SELECT '0xa' || i, md5(i::text), '0xowner' || i % 500, 70, 'Job finished', timestamp '2023-01-01' + i * interval '1 minute',
       timestamp '2023-01-01' + i * interval '1 minute' + interval '30 seconds', 'ocean-compute',
       pg_temp.document(md5(i::text), 'did:op:algo', 'did:op:data'), '0x' || substr(md5(i::text) || md5(i::text), 1, 40)
FROM generate_series(1, 5000) AS i;

INSERT INTO envs (namespace, status, lastping) VALUES
    ('ocean-compute', '{"allowedChainId": [8996], "cpuNumber": 2}', '2024-03-05 10:00:00'),
    ('long-gone', '{"allowed', '2020-01-01 00:00:00');

-- One row of junk per request ever made, nearly: signers that nobody is, nonces of all kinds. A million, unless the
-- setting python_service.ownerless_nonces says otherwise.
INSERT INTO nonces (provider, nonce)
SELECT '0x' || substr(md5(i::text) || md5((-i)::text), 1, 40), (1692712345000000000 + i::bigint * 1000)::text
FROM generate_series(1, coalesce(current_setting('python_service.ownerless_nonces', true), '1000000')::int) AS i;
INSERT INTO nonces (provider, nonce) VALUES
    ('0x00000000000000000000000000000000000000a1', NULL),
    ('0x00000000000000000000000000000000000000a1', '1692712345.123456'),
    ('0x00000000000000000000000000000000000000a1', 'None'),
    ('', '');
